//! Modules and configurations that cannot be used are refused in the operator's words.
mod common;
use common::*;
use std::{fs, os::unix::fs::PermissionsExt};
use weft_plugin_host::{Abi, Engine, EngineConfig, HostServices, LoadError, Module, Plugin, PluginSpec, StartError};

fn refusal(bytes: &[u8], sha256: Option<&str>) -> String {
    match Module::compile(&engine_of_tests(), "shop/canary", bytes, sha256) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = std::path::Path::new("/does/not/exist.wasm");
    let Err(error) = Module::from_file(&engine_of_tests(), "shop/canary", path, None) else { panic!("it was taken") };
    let text = error.to_string();
    assert!(text.contains("shop/canary") && text.contains("/does/not/exist.wasm"), "{text}");
}

#[test]
fn what_is_not_wasm_is_refused_with_a_hint() {
    for (bytes, hint) in [
        (&b"hello"[..], "does not begin like one"),
        (b"", "empty"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x7fELF", "program for Linux"),
        (b"(module)", "text"),
        (b"\0asm\x0d\0\x01\0", "component"),
    ] {
        let text = refusal(bytes, None);
        assert!(text.contains("not a WebAssembly module") && text.contains(hint), "{text}");
    }
    assert!(refusal(b"\0asm\x01\0\0\0garbage", None).contains("not valid WebAssembly"));
}

#[test]
fn a_wrong_hash_is_shown_with_the_right_one() {
    let bytes = wasm("", "");
    let text = refusal(&bytes, Some("abc123"));
    let actual = Module::compile(&engine_of_tests(), "x", &bytes, None).unwrap().sha256().to_owned();
    assert!(text.contains("abc123") && text.contains(&actual), "{text}");
    assert!(
        Module::compile(&engine_of_tests(), "x", &bytes, Some(&format!("sha256:{}", actual.to_uppercase()))).is_ok()
    );
}

#[test]
fn a_module_without_an_abi_marker_is_refused() {
    let plain = wat::parse_str(r#"(module (memory (export "memory") 1))"#).unwrap();
    assert!(refusal(&plain, None).contains("no Proxy-Wasm ABI marker"));
    let go = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#).unwrap();
    assert!(refusal(&go, None).contains("-buildmode=c-shared"));
    let future = wat::parse_str(r#"(module (func (export "proxy_abi_version_0_3_0")))"#).unwrap();
    assert!(refusal(&future, None).contains("proxy_abi_version_0_3_0"));
}

#[test]
fn every_abi_version_in_use_is_known() {
    for (marker, abi) in
        [("0_1_0", Abi::V0_1_0), ("0_2_0", Abi::V0_2_0), ("0_2_1", Abi::V0_2_1), ("0_2_100", Abi::V0_2_1)]
    {
        let text = format!(
            r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_{marker}"))
                (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 8))"#
        );
        let module = Module::compile(&engine_of_tests(), "x", &wat::parse_str(text).unwrap(), None).unwrap();
        assert_eq!(module.abi(), abi);
    }
}

#[test]
fn imports_that_the_host_lacks_are_named() {
    let bytes = wasm(
        r#"(import "env" "proxy_redis_call" (func (param i32)))
           (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "thread_spawn" (func))"#,
        "",
    );
    let Err(error) = Module::compile(&engine_of_tests(), "x", &bytes, None) else { panic!("it was taken") };
    let LoadError::MissingImports { imports, .. } = error else { panic!("{error}") };
    assert_eq!(imports, ["env.proxy_redis_call", "wasi_snapshot_preview1.thread_spawn"]);
}

#[test]
fn a_module_without_memory_or_allocator_is_refused() {
    let bytes = wat::parse_str(r#"(module (func (export "proxy_abi_version_0_2_1")))"#).unwrap();
    assert!(refusal(&bytes, None).contains("must export its memory"));
    let bytes =
        wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")))"#).unwrap();
    assert!(refusal(&bytes, None).contains("malloc"));
}

#[test]
fn a_module_beyond_the_size_limit_is_refused() {
    let engine = Engine::new(EngineConfig { module_bytes: 100, ..EngineConfig::default() }).unwrap();
    let Err(error) = Module::compile(&engine, "x", &wasm("", ""), None) else { panic!("it was taken") };
    assert!(matches!(error, LoadError::TooLarge { limit: 100, .. }));
}

#[test]
fn a_plugin_that_refuses_its_configuration_says_why() {
    let spec = spec(
        r#"(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        r#"(data (i32.const 0) "no field limit")
           (func (export "proxy_on_configure") (param i32 i32) (result i32)
               (drop (call $log (i32.const 4) (i32.const 0) (i32.const 14)))
               i32.const 0)"#,
    );
    let Err(error) = Plugin::start(&engine_of_tests(), &spec, &HostServices::default()) else { panic!("it started") };
    assert!(matches!(&error, StartError::Refused { callback: "proxy_on_configure", .. }));
    assert!(error.to_string().contains("no field limit"), "{error}");
}

#[test]
fn a_callback_with_other_parameters_is_named() {
    let spec = spec("", r#"(func (export "proxy_on_request_body") (param i64))"#);
    let Err(StartError::Instantiate { cause, .. }) = Plugin::start(&engine_of_tests(), &spec, &HostServices::default())
    else {
        panic!("it started")
    };
    assert!(cause.to_string().contains("proxy_on_request_body"), "{cause}");
}

#[test]
fn a_plugin_that_loops_at_its_start_does_not_hold_up_the_proxy() {
    let mut spec = spec("", r#"(func (export "_initialize") (loop $l (br $l)))"#);
    spec.limits.start_deadline = std::time::Duration::from_millis(30);
    let Err(error) = Plugin::start(&engine_of_tests(), &spec, &HostServices::default()) else { panic!("it started") };
    assert!(matches!(error, StartError::Fault { callback: "_initialize", .. }), "{error}");
}

#[test]
fn compiled_code_is_kept_and_used_and_never_trusted_blindly() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("code");
    let engine = || Engine::new(EngineConfig { cache: Some(cache.clone()), ..EngineConfig::default() }).unwrap();
    let works = |engine: &Engine| {
        let module = Module::compile(engine, "x", &wasm("", ""), None).unwrap();
        Plugin::start(engine, &PluginSpec::new("x", module), &HostServices::default()).unwrap();
    };
    works(&engine());
    let files: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    works(&engine());
    // A damaged file is compiled anew.
    let mut bytes = fs::read(&files[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&files[0], &bytes).unwrap();
    works(&engine());
    assert_ne!(fs::read(&files[0]).unwrap(), bytes);
    // So is one that others could have written; and a folder open to others is not used.
    fs::set_permissions(&files[0], fs::Permissions::from_mode(0o666)).unwrap();
    works(&engine());
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    works(&engine());
}
