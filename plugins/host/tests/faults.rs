//! A plugin that fails costs the streams that it had, and nothing else.
mod common;
use common::*;
use std::time::{Duration, Instant};
use weft_plugin_host::{Direction, Fault, Headers, Outcome, Plugin};

const CALLBACK: &str = "proxy_on_request_headers";

/// The next stream gets a new instance, once the back-off is over.
fn recovers(plugin: &Plugin) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match plugin.http_stream(Box::new(())).request_headers(&mut get("/"), true) {
            Outcome::Fault(Fault::BackOff { retry_in }) => std::thread::sleep(retry_in),
            Outcome::Fault(_) => break,
            outcome => panic!("{outcome:?}"),
        }
        assert!(Instant::now() < deadline);
    }
    assert!(plugin.stats().snapshot().restarts >= 1);
}

#[test]
fn a_trap_ends_the_stream_and_the_instance_is_replaced() {
    let plugin = on_request("", "unreachable");
    let Fault::Trap { callback, message } = fault(&plugin) else { panic!() };
    assert!(callback == CALLBACK && message.contains("unreachable"), "{message}");
    let stats = plugin.stats().snapshot();
    assert_eq!((stats.faults, stats.instances, stats.memory_bytes), (1, 0, 0));
    recovers(&plugin);
}

#[test]
fn an_endless_loop_is_stopped_at_its_deadline() {
    let plugin = on_request("", "(loop $l (br $l)) i32.const 0");
    let start = Instant::now();
    assert_eq!(fault(&plugin), Fault::Deadline { callback: CALLBACK, limit: Duration::from_millis(20) });
    assert!(start.elapsed() < Duration::from_secs(5));
    recovers(&plugin);
}

#[test]
fn memory_beyond_the_limit_is_not_given() {
    let plugin = on_request("", "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable");
    assert_eq!(fault(&plugin), Fault::Memory { callback: CALLBACK, limit: 1 << 20 });
    recovers(&plugin);
}

#[test]
fn a_plugin_that_copes_with_refused_memory_lives_on() {
    let plugin = on_request("", "(drop (memory.grow (i32.const 1000))) i32.const 0");
    let mut stream = plugin.http_stream(Box::new(()));
    assert!(matches!(stream.request_headers(&mut get("/"), true), Outcome::Continue));
    assert_eq!(plugin.stats().snapshot().memory_bytes, 128 << 10);
}

#[test]
fn a_stack_overflow_is_a_fault() {
    let plugin = start(
        "",
        r#"(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) call $deep)"#,
    );
    assert_eq!(fault(&plugin), Fault::StackOverflow { callback: CALLBACK });
    recovers(&plugin);
}

#[test]
fn exit_ends_the_instance_not_the_proxy() {
    let plugin = on_request(
        r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        "(call $exit (i32.const 3)) i32.const 0",
    );
    assert_eq!(fault(&plugin), Fault::Exit { callback: CALLBACK, code: 3 });
    recovers(&plugin);
}

#[test]
fn other_streams_of_a_failed_instance_end_with_a_fault_and_get_their_headers_back() {
    // Traps on requests with four headers, pauses those with more.
    let plugin = on_request("", "(if (i32.eq (local.get 1) (i32.const 4)) (then unreachable)) i32.const 1");
    let mut paused = plugin.http_stream(Box::new(()));
    let mut headers = get("/paused");
    headers.add(b"x-more", b"1").unwrap();
    assert!(matches!(paused.request_headers(&mut headers, true), Outcome::Pause));
    assert!(headers.is_empty());
    assert!(matches!(fault(&plugin), Fault::Trap { .. }));

    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut headers = Headers::default();
    let poll = paused.poll_resumed(&mut context, Direction::Request, &mut headers, &mut bytes::Bytes::new());
    assert!(matches!(poll, std::task::Poll::Ready(Outcome::Fault(Fault::InstanceLost))), "{poll:?}");
    assert_eq!(headers.get(b":path"), Some(&b"/paused"[..]));
}

#[test]
fn a_stream_keeps_its_first_fault() {
    let plugin = on_request("", "unreachable");
    let mut stream = plugin.http_stream(Box::new(()));
    let mut headers = get("/kept");
    let Outcome::Fault(first) = stream.request_headers(&mut headers, true) else { panic!() };
    assert_eq!(headers.get(b":path"), Some(&b"/kept"[..]));
    let Outcome::Fault(second) = stream.response_headers(&mut Headers::default(), true) else { panic!() };
    assert_eq!(first, second);
    drop(stream);
    assert_eq!(plugin.stats().snapshot().faults, 1);
}

#[test]
fn a_plugin_that_cannot_start_again_is_tried_less_and_less_often() {
    // Starts once: a counter in the shared data of all instances decides.
    let plugin = start(
        r#"(import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))"#,
        r#"(data (i32.const 0) "k")
           (func (export "proxy_on_configure") (param i32 i32) (result i32)
               (local $first i32)
               (local.set $first (call $get (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 20) (i32.const 24)))
               (drop (call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0)))
               local.get $first)
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#,
    );
    assert!(matches!(fault(&plugin), Fault::Trap { .. }));
    loop {
        match fault(&plugin) {
            Fault::BackOff { retry_in } if plugin.stats().snapshot().faults < 1000 => std::thread::sleep(retry_in),
            Fault::Restart { reason } => break assert!(reason.contains("returned false"), "{reason}"),
            fault => panic!("{fault}"),
        }
    }
    assert!(matches!(fault(&plugin), Fault::BackOff { .. }));
}
