//! What the http-policy plugin adds to a request: `cargo run --release --example added_cost -- http-policy.wasm`
use std::{hint::black_box, path::PathBuf, time::Instant};
use weft_plugin_host::{Engine, EngineConfig, Headers, HostServices, Module, Outcome, Plugin, PluginSpec, Properties};

const RULES: &str = r#"{"sets":{"1":[
    {"policy":"shop/frontend","method":"GET","path":"/api/users/.*"},
    {"policy":"shop/frontend","method":"POST","path":"/api/login"}]}}"#;
const REQUESTS: u32 = 1_000_000;
const ROUNDS: usize = 5;

struct Set;

impl Properties for Set {
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool {
        if path == ["weft", "policy_set"] {
            out.push(b'1');
        }
        path == ["weft", "policy_set"]
    }
}

fn headers(path: &str) -> Headers {
    let request = http::Request::builder()
        .uri(path)
        .header("host", "backend:8080")
        .header("user-agent", "wrk")
        .header("accept", "*/*")
        .header("x-request-id", "0c5b4dd0-5a6e-4e05-9f07-3f0a3c1b2a55");
    // Constant parts: they are valid.
    let mut parts = request.body(()).expect("a valid request").into_parts().0;
    Headers::take_request(&mut parts, http::uri::Scheme::HTTP)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file: PathBuf = std::env::args_os().nth(1).ok_or("usage: added_cost http-policy.wasm")?.into();
    let engine = Engine::new(EngineConfig::default())?;
    let begin = Instant::now();
    let module = Module::from_file(&engine, "http-policy", &file, None)?;
    println!("compile: {} ms", begin.elapsed().as_millis());
    let mut spec = PluginSpec::new("http-policy", module);
    spec.configuration = RULES.as_bytes().to_vec();
    let begin = Instant::now();
    let plugin = Plugin::start(&engine, &spec, &HostServices::default())?;
    println!("instantiate and configure: {} us", begin.elapsed().as_micros());
    for (what, path) in [("allowed", "/api/users/42"), ("denied", "/admin/delete")] {
        let mut headers = headers(path);
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            for _ in 0..REQUESTS {
                let mut stream = plugin.http_stream(Box::new(Set));
                let outcome = black_box(stream.request_headers(&mut headers, true));
                assert!(matches!(outcome, Outcome::Continue | Outcome::Respond(_)));
                stream.finish();
            }
            best = best.min(begin.elapsed().as_nanos() as f64 / f64::from(REQUESTS));
        }
        println!("{what}: {best:.0} ns a request, context and all");
    }
    println!("memory: {} KiB", plugin.stats().snapshot().memory_bytes >> 10);
    Ok(())
}
