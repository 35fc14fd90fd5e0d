//! The Proxy-Wasm side: which set a request belongs to comes from the proxy, the verdict goes back to it.
use crate::{
    config::Config,
    host,
    rules::{Denial, Request, RuleSets, Verdict},
};
use proxy_wasm::{
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};
use std::rc::Rc;

const POLICY_SET: &str = "weft\0policy_set";
const POLICY: &str = "weft\0policy";
/// One pair, `content-type: text/plain`, as the ABI serializes it.
const TEXT: &[u8] = b"\x01\0\0\0\x0c\0\0\0\x0a\0\0\0content-type\0text/plain\0";

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { policy: Rc::default() }));
}}

#[derive(Default)]
struct Policy {
    sets: RuleSets,
    deny_status: u32,
    deny_body: String,
}

struct Root {
    policy: Rc<Policy>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let config = match Config::parse(&self.get_plugin_configuration().unwrap_or_default()) {
            Ok(config) => config,
            Err(error) => {
                log::error!("{error}");
                return false;
            }
        };
        let (deny_status, deny_body) = (config.deny_status.into(), config.deny_body.clone());
        let (sets, bad) = RuleSets::compile(config);
        for rule in bad {
            log::error!("a rule of policy {:?} allows nothing: {} (set {})", rule.policy, rule.reason, rule.set);
        }
        self.policy = Rc::new(Policy { sets, deny_status, deny_body });
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { policy: Rc::clone(&self.policy) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Stream {
    policy: Rc<Policy>,
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let set = host::property(POLICY_SET);
        let request = Incoming {
            method: host::header(":method").unwrap_or_default(),
            path: host::header(":path").unwrap_or_default(),
        };
        let denial = match self.policy.sets.judge(set.as_deref(), &request) {
            Verdict::Allow(policy) => {
                if !host::set_property(POLICY, policy) {
                    log::warn!("the host did not take the name of the policy that allows a request");
                }
                return Action::Continue;
            }
            Verdict::Deny(denial) => denial,
        };
        let details = match denial {
            Denial::NoSet => "http-policy: denied (no rules for this connection)",
            Denial::NoRule => "http-policy: denied",
            Denial::Spelling => "http-policy: denied (the path has another meaning when decoded)",
        };
        if !host::respond(self.policy.deny_status, details, &self.policy.deny_body, TEXT) {
            log::error!("the host refused the answer to a denied request");
        }
        // Also where the answer was refused: a paused request goes nowhere.
        Action::Pause
    }
}

struct Incoming {
    method: Vec<u8>,
    path: Vec<u8>,
}

impl Request for Incoming {
    fn method(&self) -> &[u8] {
        &self.method
    }

    fn path(&self) -> &[u8] {
        &self.path
    }

    fn host(&self) -> Option<Vec<u8>> {
        host::header(":authority")
    }

    fn header(&self, name: &str) -> Option<Vec<u8>> {
        host::header(name)
    }
}
