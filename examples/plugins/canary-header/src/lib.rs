//! A plugin for Weft, written with the public Proxy-Wasm SDK: refuses requests that carry a certain header, and marks
//! all others, and their responses, with a header of its own.
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use serde::Deserialize;
use std::rc::Rc;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { config: Rc::default() }));
}}

/// What stands under `pluginConfig`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// A request with this header gets 403. Not given: none is refused.
    deny_header: Option<String>,
    /// Added to requests on their way to the workload.
    request_header: Option<Header>,
    /// Added to responses on their way to the client.
    response_header: Option<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    value: String,
}

/// One for each instance: reads the configuration, and makes a context for each request.
struct Root {
    config: Rc<Config>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let json = self.get_plugin_configuration().unwrap_or_else(|| b"{}".to_vec());
        match serde_json::from_slice(&json) {
            Ok(config) => self.config = Rc::new(config),
            Err(error) => {
                // Shown by `weft plugin list`; the version before stays in force.
                log::error!("pluginConfig: {error}");
                return false;
            }
        }
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Canary { config: Rc::clone(&self.config) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One for each request.
struct Canary {
    config: Rc<Config>,
}

impl Context for Canary {}

impl HttpContext for Canary {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if let Some(name) = &self.config.deny_header
            && self.get_http_request_header_bytes(name).is_some()
        {
            let body = format!("Requests with {name} are not served here\n");
            self.send_http_response(403, vec![("content-type", "text/plain")], Some(body.as_bytes()));
            return Action::Pause;
        }
        if let Some(header) = &self.config.request_header {
            self.set_http_request_header(&header.name, Some(&header.value));
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        if let Some(header) = &self.config.response_header {
            self.set_http_response_header(&header.name, Some(&header.value));
        }
        Action::Continue
    }
}
