//! Modules in WebAssembly text, and what tests do with them.
#![allow(dead_code)]
use std::{fs, path::Path, time::Duration};
use weft_plugin_host::{
    Engine, EngineConfig, Fault, Headers, HostServices, Limits, Module, Outcome, Plugin, PluginSpec,
};

pub fn engine() -> Engine {
    Engine::new(EngineConfig::default()).unwrap()
}

/// A module with the marker, a memory of two pages, an allocator that never frees, and `body`. `imports` come first.
pub fn wasm(imports: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            {imports}
            (memory (export "memory") 2)
            (global $heap (mut i32) (i32.const 65536))
            (func (export "proxy_abi_version_0_2_1"))
            (func $malloc (export "malloc") (param i32) (result i32)
                global.get $heap
                (global.set $heap (i32.add (global.get $heap) (local.get 0))))
            {body})"#
    );
    wat::parse_str(text).unwrap()
}

pub fn module(imports: &str, body: &str) -> Module {
    Module::compile(&engine_of_tests(), "test", &wasm(imports, body), None).unwrap()
}

/// One engine for all tests of a program, as in a proxy.
pub fn engine_of_tests() -> Engine {
    static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
    ENGINE.get_or_init(engine).clone()
}

pub fn spec(imports: &str, body: &str) -> PluginSpec {
    let mut spec = PluginSpec::new("test", module(imports, body));
    spec.limits = Limits { memory_bytes: 1 << 20, callback_deadline: Duration::from_millis(20), ..spec.limits };
    spec
}

pub fn start(imports: &str, body: &str) -> Plugin {
    Plugin::start(&engine_of_tests(), &spec(imports, body), &HostServices::default()).unwrap()
}

/// A plugin whose `proxy_on_request_headers` is this.
pub fn on_request(imports: &str, body: &str) -> Plugin {
    start(imports, &format!(r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {body})"#))
}

pub fn get(path: &str) -> Headers {
    let mut parts = http::Request::builder().uri(path).header("host", "backend:8080").body(()).unwrap().into_parts().0;
    Headers::take_request(&mut parts, http::uri::Scheme::HTTP)
}

/// The fault of a request.
pub fn fault(plugin: &Plugin) -> Fault {
    match plugin.http_stream(Box::new(())).request_headers(&mut get("/"), true) {
        Outcome::Fault(fault) => fault,
        outcome => panic!("{outcome:?}"),
    }
}

/// A plugin that was built before: by `cargo xtask`, into `target/plugins`.
pub fn built(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins").join(format!("{name}.wasm"));
    fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; build the plugins first: cargo xtask plugins", path.display()))
}

pub fn built_plugin(name: &str, configuration: &str) -> Plugin {
    let module = Module::compile(&engine_of_tests(), name, &built(name), None).unwrap();
    let mut spec = PluginSpec::new(name, module);
    spec.configuration = configuration.as_bytes().to_vec();
    Plugin::start(&engine_of_tests(), &spec, &HostServices::default()).unwrap()
}
