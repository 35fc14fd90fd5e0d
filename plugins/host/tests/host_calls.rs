//! What host functions answer, above all to nonsense.
mod common;
use common::*;
use weft_plugin_host::{Outcome, Plugin, Properties, StatsSnapshot};

const OK: i32 = 0;
const NOT_FOUND: i32 = 1;
const BAD_ARGUMENT: i32 = 2;
const INVALID_MEMORY: i32 = 6;

/// Calls a host function in `proxy_on_request_headers`; the status becomes the status of the answer, from 200 on.
fn status_of(name: &str, arguments: &[i64]) -> i32 {
    let parameters = "i32 ".repeat(arguments.len());
    let push: String = arguments.iter().map(|argument| format!("(i32.const {argument})")).collect();
    let plugin = on_request(
        &format!(
            r#"(import "env" "{name}" (func $f (param {parameters}) (result i32)))
               (import "env" "proxy_send_local_response" (func $r (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#
        ),
        &format!(
            "(drop (call $r (i32.add (i32.const 200) (call $f {push}))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
             i32.const 1"
        ),
    );
    match plugin.http_stream(Box::new(())).request_headers(&mut get("/"), true) {
        Outcome::Respond(response) => i32::from(response.status.as_u16()) - 200,
        outcome => panic!("{outcome:?}"),
    }
}

const FAR: i64 = 0x7fff_fff0;
const HUGE: i64 = -1;

#[test]
fn pointers_outside_the_memory_are_refused() {
    for (name, arguments) in [
        ("proxy_log", &[2, FAR, 4][..]),
        ("proxy_log", &[2, 0, HUGE]),
        ("proxy_log", &[2, HUGE, HUGE]),
        ("proxy_get_current_time_nanoseconds", &[HUGE]),
        ("proxy_get_header_map_value", &[0, FAR, 4, 0, 4]),
        ("proxy_get_header_map_pairs", &[0, FAR, 0]),
        ("proxy_add_header_map_value", &[0, 0, HUGE, 0, 1]),
        ("proxy_set_header_map_pairs", &[0, FAR, 100]),
        ("proxy_get_property", &[HUGE, 1, 0, 4]),
        ("proxy_set_property", &[0, 1, 0, HUGE]),
        ("proxy_set_shared_data", &[0, HUGE, 0, 0, 0]),
        ("proxy_define_metric", &[0, FAR, 1, 0]),
        ("proxy_get_buffer_bytes", &[7, 0, 1, FAR, 0]),
    ] {
        let expected = if name == "proxy_get_buffer_bytes" { OK.max(INVALID_MEMORY) } else { INVALID_MEMORY };
        let status = status_of(name, arguments);
        assert!(status == expected, "{name} {arguments:?}: {status}");
    }
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    for (name, arguments, expected) in [
        ("proxy_log", &[6, 0, 0][..], BAD_ARGUMENT),
        ("proxy_get_header_map_value", &[99, 0, 1, 0, 4], BAD_ARGUMENT),
        ("proxy_get_header_map_value", &[1, 0, 1, 0, 4], NOT_FOUND),
        ("proxy_get_header_map_pairs", &[2, 0, 4], OK),
        ("proxy_add_header_map_value", &[2, 0, 1, 0, 1], BAD_ARGUMENT),
        ("proxy_get_buffer_bytes", &[0, 0, 10, 0, 4], NOT_FOUND),
        ("proxy_get_buffer_bytes", &[0, -1, 10, 0, 4], BAD_ARGUMENT),
        ("proxy_get_buffer_bytes", &[9, 0, 10, 0, 4], BAD_ARGUMENT),
        ("proxy_set_buffer_bytes", &[0, 0, 0, 0, 0], BAD_ARGUMENT),
        ("proxy_continue_stream", &[4], BAD_ARGUMENT),
        ("proxy_close_stream", &[4], BAD_ARGUMENT),
        ("proxy_set_effective_context", &[77], BAD_ARGUMENT),
        ("proxy_call_foreign_function", &[0, 0, 0, 0, 0, 0], NOT_FOUND),
        ("proxy_http_call", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], BAD_ARGUMENT),
        ("proxy_grpc_call", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 4),
        ("proxy_dequeue_shared_queue", &[1, 0, 4], NOT_FOUND),
        ("proxy_get_metric", &[1, 0], NOT_FOUND),
        ("proxy_get_shared_data", &[0, 1, 0, 4, 8], NOT_FOUND),
        ("proxy_done", &[], OK),
    ] {
        assert_eq!(status_of(name, arguments), expected, "{name} {arguments:?}");
    }
}

#[test]
fn an_allocator_that_lies_is_no_danger() {
    for body in ["i32.const -16", "i32.const 0", "unreachable", "(drop (call $time (i32.const 0))) i32.const 131064"] {
        let text = format!(
            r#"(module
                (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
                (import "env" "proxy_get_current_time_nanoseconds" (func $time (param i32) (result i32)))
                (memory (export "memory") 2)
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "malloc") (param i32) (result i32) {body})
                (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                    (call $pairs (i32.const 0) (i32.const 16) (i32.const 20))))"#
        );
        let module =
            weft_plugin_host::Module::compile(&engine_of_tests(), "x", &wat::parse_str(text).unwrap(), None).unwrap();
        let spec = weft_plugin_host::PluginSpec::new("x", module);
        let plugin = Plugin::start(&engine_of_tests(), &spec, &Default::default()).unwrap();
        let outcome = plugin.http_stream(Box::new(())).request_headers(&mut get("/"), true);
        assert!(matches!(outcome, Outcome::Pause), "{body}: {outcome:?}");
    }
}

struct Known;

impl Properties for Known {
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool {
        if path == ["weft", "in"] {
            out.extend_from_slice(b"value");
        }
        path == ["weft", "in"]
    }
}

#[test]
fn a_property_goes_in_and_another_comes_out() {
    let plugin = on_request(
        r#"(import "env" "proxy_get_property" (func $get (param i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))"#,
        // The trailing NUL of old SDKs is part of the first path.
        r#"(i64.store (i32.const 0) (i64.const 0x006e690074666577)) (i64.store (i32.const 8) (i64.const 0x74756f0074666577))
           (drop (call $get (i32.const 0) (i32.const 8) (i32.const 16) (i32.const 20)))
           (drop (call $set (i32.const 8) (i32.const 8) (i32.load (i32.const 16)) (i32.load (i32.const 20))))
           i32.const 0"#,
    );
    let mut stream = plugin.http_stream(Box::new(Known));
    assert!(matches!(stream.request_headers(&mut get("/"), true), Outcome::Continue));
    assert_eq!(stream.property(&["weft", "out"]).as_deref(), Some(&b"value"[..]));
    assert_eq!(stream.property(&["weft", "in"]), None);
}

#[test]
fn the_first_answer_of_a_plugin_stands() {
    let plugin = on_request(
        r#"(import "env" "proxy_send_local_response" (func $r (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#,
        r#"(i64.store (i32.const 0) (i64.const 0x206f6e2079687700))
           (drop (call $r (i32.const 429) (i32.const 1) (i32.const 3) (i32.const 5) (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 8)))
           (drop (call $r (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
           i32.const 0"#,
    );
    let mut headers = get("/kept");
    let Outcome::Respond(response) = plugin.http_stream(Box::new(())).request_headers(&mut headers, true) else {
        panic!()
    };
    assert_eq!((response.status.as_u16(), response.details.as_str(), &response.body[..]), (429, "why", &b"no"[..]));
    assert_eq!(response.grpc_status, Some(8));
    assert_eq!(headers.get(b":path"), Some(&b"/kept"[..]));
    let stats = plugin.stats().snapshot();
    assert_eq!(
        StatsSnapshot { callback_ns: 0, memory_bytes: 0, ..stats },
        StatsSnapshot { requests: 1, denied: 1, instances: 1, ..Default::default() }
    );
}

#[test]
fn answers_that_are_not_final_are_refused() {
    for status in [0, 100, 199, 600, 65_536 + 200] {
        let arguments = [status, 0, 0, 0, 0, 0, 0, -1];
        assert_eq!(status_of_other("proxy_send_local_response", &arguments), BAD_ARGUMENT, "{status}");
    }
}

/// As `status_of`, for the function that it uses itself: the status becomes the action, and 2 counts as a pause.
fn status_of_other(name: &str, arguments: &[i64]) -> i32 {
    let parameters = "i32 ".repeat(arguments.len());
    let push: String = arguments.iter().map(|argument| format!("(i32.const {argument})")).collect();
    let plugin = on_request(
        &format!(r#"(import "env" "{name}" (func $f (param {parameters}) (result i32)))"#),
        &format!("(if (i32.eq (call $f {push}) (i32.const 2)) (then unreachable)) i32.const 0"),
    );
    match plugin.http_stream(Box::new(())).request_headers(&mut get("/"), true) {
        Outcome::Fault(_) => BAD_ARGUMENT,
        _ => OK,
    }
}
