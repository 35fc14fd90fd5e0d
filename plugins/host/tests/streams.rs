//! Bodies, pauses, ticks and the life of a context.
mod common;
use bytes::Bytes;
use common::*;
use http::HeaderMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};
use weft_plugin_host::{
    ClosedBy, Direction, Engine, EngineConfig, Headers, HostServices, Module, Outcome, Plugin, PluginSpec, Pool,
    TcpOutcome,
};

const SET_BUFFER: &str =
    r#"(import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))"#;

fn body(plugin: &str) -> String {
    format!(r#"(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) {plugin})"#)
}

#[test]
fn a_body_goes_through_untouched_and_without_a_copy() {
    let plugin = start("", &body("i32.const 0"));
    let mut stream = plugin.http_stream(Box::new(()));
    let chunk = Bytes::from_static(b"hello");
    let mut lent = chunk.clone();
    assert!(matches!(stream.request_body(&mut lent, false), Outcome::Continue));
    assert_eq!((lent.as_ptr(), &lent[..]), (chunk.as_ptr(), &chunk[..]));
}

#[test]
fn a_paused_body_is_gathered_and_given_out_whole() {
    // Pauses until the end, then replaces the middle: the size that it sees is of all gathered bytes.
    let plugin = start(
        SET_BUFFER,
        &format!(
            r#"(data (i32.const 0) "XY") {}"#,
            body(
                "(if (i32.eqz (local.get 2)) (then (return (i32.const 1))))
                 (drop (call $set (i32.const 0) (i32.const 1) (i32.sub (local.get 1) (i32.const 2)) (i32.const 0) (i32.const 2)))
                 i32.const 0"
            )
        ),
    );
    let mut stream = plugin.http_stream(Box::new(()));
    for text in ["abc", "def"] {
        let mut chunk = Bytes::from_static(text.as_bytes());
        assert!(matches!(stream.request_body(&mut chunk, false), Outcome::Pause));
        assert!(chunk.is_empty());
    }
    let mut chunk = Bytes::from_static(b"gh");
    assert!(matches!(stream.request_body(&mut chunk, true), Outcome::Continue));
    assert_eq!(chunk, "aXYh");
}

#[test]
fn a_plugin_cannot_gather_without_end() {
    let mut spec = spec("", &body("i32.const 1"));
    spec.limits.buffered_body_bytes = 10;
    let plugin = Plugin::start(&engine_of_tests(), &spec, &HostServices::default()).unwrap();
    let mut stream = plugin.http_stream(Box::new(()));
    assert!(matches!(stream.request_body(&mut Bytes::from_static(b"12345678"), false), Outcome::Pause));
    let Outcome::Respond(response) = stream.request_body(&mut Bytes::from_static(b"90a"), false) else { panic!() };
    assert_eq!(response.status, 413);
}

#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_paused_request_goes_on_when_a_tick_says_so() {
    // Remembers the context that it paused; the tick adds a header to it and lets it go.
    let plugin = start(
        r#"(import "env" "proxy_set_effective_context" (func $switch (param i32) (result i32)))
           (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
           (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))"#,
        r#"(data (i32.const 0) "x-tick")
           (global $context (mut i32) (i32.const 0))
           (func (export "proxy_on_configure") (param i32 i32) (result i32) (drop (call $period (i32.const 50))) i32.const 1)
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
               (global.set $context (local.get 0)) i32.const 1)
           (func (export "proxy_on_tick") (param i32)
               (if (call $switch (global.get $context)) (then unreachable))
               (drop (call $add (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 6)))
               (drop (call $continue (i32.const 0))))"#,
    );
    assert_eq!(plugin.tick_period(), Some(std::time::Duration::from_millis(50)));
    let mut stream = plugin.http_stream(Box::new(()));
    let mut headers = get("/");
    assert!(matches!(stream.request_headers(&mut headers, true), Outcome::Pause));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut poll = |headers: &mut Headers| {
        stream.poll_resumed(&mut Context::from_waker(&waker), Direction::Request, headers, &mut Bytes::new())
    };
    assert!(poll(&mut headers).is_pending());
    plugin.tick().unwrap();
    assert_eq!(woken.0.load(SeqCst), 1);
    assert!(matches!(poll(&mut headers), Poll::Ready(Outcome::Continue)));
    assert_eq!(headers.get(b"x-tick"), Some(&b"x-tick"[..]));
}

#[test]
fn a_context_is_created_once_and_ended_once() {
    // Each callback writes its digit into the log.
    let callback = |name: &str, parameters: &str, digit: u32, result: &str| {
        format!(
            r#"(data (i32.const {digit}) "{digit}")
               (func (export "{name}") (param {parameters}) {result}
                   (drop (call $log (i32.const 0) (i32.const {digit}) (i32.const 1))) {})"#,
            if result.is_empty() { "" } else { "i32.const 1" }
        )
    };
    let plugin = start(
        r#"(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        &[
            callback("proxy_on_context_create", "i32 i32", 1, ""),
            callback("proxy_on_request_trailers", "i32 i32", 2, "(result i32)"),
            callback("proxy_on_done", "i32", 3, "(result i32)"),
            callback("proxy_on_log", "i32", 4, ""),
            callback("proxy_on_delete", "i32", 5, ""),
        ]
        .concat(),
    );
    drop(plugin.http_stream(Box::new(())));
    assert_eq!(plugin.log_lines().concat(), "1");
    let mut stream = plugin.http_stream(Box::new(()));
    assert!(matches!(stream.request_trailers(&mut Headers::trailers(HeaderMap::new())), Outcome::Pause));
    stream.finish();
    drop(stream);
    assert_eq!(plugin.log_lines().concat(), "112345");
}

#[test]
fn a_plugin_of_abi_0_1_gets_headers_without_the_end() {
    let plugin = start("", r#"(func (export "proxy_on_request_headers") (param i32 i32) (result i32) i32.const 0)"#);
    let mut stream = plugin.http_stream(Box::new(()));
    assert!(matches!(stream.request_headers(&mut get("/"), true), Outcome::Continue));
}

#[test]
fn a_tcp_connection_is_refused_or_its_bytes_are_changed() {
    let close = r#"(import "env" "proxy_close_stream" (func $close (param i32) (result i32)))"#;
    let refuse = start(
        close,
        r#"(func (export "proxy_on_new_connection") (param i32) (result i32) (drop (call $close (i32.const 2))) i32.const 0)"#,
    );
    assert_eq!(refuse.tcp_stream(Box::new(())).new_connection(), TcpOutcome::Close);

    let change = start(
        SET_BUFFER,
        r#"(data (i32.const 0) ">")
           (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
               (drop (call $set (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1))) i32.const 0)"#,
    );
    let mut stream = change.tcp_stream(Box::new(()));
    assert_eq!(stream.new_connection(), TcpOutcome::Continue);
    let mut data = Bytes::from_static(b"hi");
    assert_eq!(stream.downstream_data(&mut data, false), TcpOutcome::Continue);
    assert_eq!(data, ">hi");
    assert_eq!(stream.upstream_data(&mut data, true), TcpOutcome::Continue);
    stream.downstream_closed(ClosedBy::Peer);
    stream.finish();
    assert_eq!(change.stats().snapshot().requests, 1);
}

#[test]
fn instances_come_from_a_pool_if_there_is_one() {
    let pool = Some(Pool { instances: 4, memory_bytes: 1 << 20 });
    let engine = Engine::new(EngineConfig { pool, ..EngineConfig::default() }).unwrap();
    let module = Module::compile(&engine, "x", &wasm("", ""), None).unwrap();
    let spec = PluginSpec::new("x", module);
    let services = HostServices::default();
    let all: Vec<_> = (0..4).map(|_| Plugin::start(&engine, &spec, &services).unwrap()).collect();
    assert!(Plugin::start(&engine, &spec, &services).is_err());
    drop(all);
    assert!(Plugin::start(&engine, &spec, &services).is_ok());
}

#[test]
fn a_plugin_may_want_all_of_wasi() {
    let names = [
        ("fd_fdstat_get", "i32 i32"),
        ("poll_oneoff", "i32 i32 i32 i32"),
        ("environ_sizes_get", "i32 i32"),
        ("environ_get", "i32 i32"),
        ("random_get", "i32 i32"),
        ("clock_time_get", "i32 i64 i32"),
        ("fd_prestat_get", "i32 i32"),
        ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
        ("fd_write", "i32 i32 i32 i32"),
    ];
    let imports: String = names
        .iter()
        .flat_map(|(name, parameters)| {
            ["wasi_snapshot_preview1", "wasi_unstable"].map(|module| {
                format!(r#"(import "{module}" "{name}" (func ${module}_{name} (param {parameters}) (result i32)))"#)
            })
        })
        .collect();
    // Random bytes, the monotonic clock (not zero), the environment, and a line of output.
    let mut spec = spec(
        &imports,
        r#"(func (export "_initialize")
               (if (call $wasi_snapshot_preview1_random_get (i32.const 0) (i32.const 16)) (then unreachable))
               (if (call $wasi_unstable_clock_time_get (i32.const 1) (i64.const 0) (i32.const 32)) (then unreachable))
               (if (i64.eqz (i64.load (i32.const 32))) (then unreachable))
               (if (call $wasi_snapshot_preview1_environ_get (i32.const 64) (i32.const 128)) (then unreachable))
               (i32.store (i32.const 96) (i32.load (i32.const 64))) (i32.store (i32.const 100) (i32.const 3))
               (if (call $wasi_snapshot_preview1_fd_write (i32.const 1) (i32.const 96) (i32.const 1) (i32.const 104)) (then unreachable)))"#,
    );
    spec.env.insert("A".to_owned(), "b".to_owned());
    let plugin = Plugin::start(&engine_of_tests(), &spec, &HostServices::default()).unwrap();
    assert_eq!(plugin.log_lines(), ["A=b"]);
}
