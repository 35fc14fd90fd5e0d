//! The Proxy-Wasm side: the proxy tells what the peer proved, the verdict is the connection's.
use crate::verdict::Config;
use proxy_wasm::{
    traits::{Context, RootContext, StreamContext},
    types::{Action, ContextType, LogLevel},
};
use std::rc::Rc;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { config: Rc::default() }));
}}

struct Root {
    config: Rc<Config>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        match Config::parse(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(config) => self.config = Rc::new(config),
            Err(error) => {
                log::error!("the configuration is not what spiffe-authz understands: {error}");
                return false;
            }
        }
        true
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Connection { config: Rc::clone(&self.config) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }
}

struct Connection {
    config: Rc<Config>,
}

impl Context for Connection {}

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        let peer = self.get_property(vec!["connection", "uri_san_peer_certificate"]);
        let expected = self.get_property(vec!["weft", "expected_spiffe_id"]);
        match self.config.judge(peer.as_deref(), expected.as_deref()) {
            Ok(_) => Action::Continue,
            Err(reason) => {
                self.set_property(vec!["weft", "deny_reason"], Some(reason.as_bytes()));
                self.close_downstream();
                Action::Pause
            }
        }
    }
}
