//! The built-in plugins and the example, as `cargo xtask` built them, behind the host.
mod common;
use common::*;
use http::{HeaderMap, StatusCode};
use weft_plugin_host::{Headers, Outcome, Properties, TcpOutcome};

struct Known(Vec<(&'static str, &'static str)>);

impl Properties for Known {
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool {
        let path = path.join(".");
        let found = self.0.iter().find(|(name, _)| *name == path);
        found.inspect(|(_, value)| out.extend_from_slice(value.as_bytes())).is_some()
    }
}

const RULES: &str = r#"{"sets":{"1":[
    {"policy":"shop/frontend","method":"GET","path":"/api/users/.*"},
    {"policy":"shop/frontend","method":"POST","path":"/api/login"}]}}"#;

#[test]
fn http_policy_lets_pass_what_the_rules_allow_and_answers_the_rest() {
    let plugin = built_plugin("http-policy", RULES);
    let mut stream = plugin.http_stream(Box::new(Known(vec![("weft.policy_set", "1")])));
    assert!(matches!(stream.request_headers(&mut get("/api/users/42"), true), Outcome::Continue));
    assert_eq!(stream.property(&["weft", "policy"]).as_deref(), Some(&b"shop/frontend"[..]));

    for (set, path) in [("1", "/admin/delete"), ("1", "/api/users/..%2f..%2fadmin"), ("2", "/api/users/42")] {
        let mut stream = plugin.http_stream(Box::new(Known(vec![("weft.policy_set", set)])));
        let Outcome::Respond(response) = stream.request_headers(&mut get(path), true) else { panic!("{path}") };
        assert_eq!((response.status, &response.body[..]), (StatusCode::FORBIDDEN, &b"Access denied\n"[..]));
        assert!(response.details.starts_with("http-policy: denied"), "{}", response.details);
        assert_eq!(response.headers["content-type"], "text/plain");
    }
    let stats = plugin.stats().snapshot();
    assert_eq!((stats.requests, stats.denied, stats.faults), (4, 3, 0));
}

#[test]
fn http_policy_has_a_configurable_answer() {
    let plugin = built_plugin("http-policy", r#"{"deny_status":418,"deny_body":"no"}"#);
    let mut stream = plugin.http_stream(Box::new(()));
    let Outcome::Respond(response) = stream.request_headers(&mut get("/"), true) else { panic!() };
    assert_eq!((response.status.as_u16(), &response.body[..]), (418, &b"no"[..]));
}

#[test]
fn header_values_that_are_not_text_do_no_harm() {
    let plugin = built_plugin("http-policy", r#"{"sets":{"1":[{"policy":"p","headers":["X-Team: blue"]}]}}"#);
    let mut headers = get("/");
    headers.add(b"x-team", b"\xff\xfe").unwrap();
    let mut stream = plugin.http_stream(Box::new(Known(vec![("weft.policy_set", "1")])));
    assert!(matches!(stream.request_headers(&mut headers, true), Outcome::Respond(_)));
    assert_eq!(plugin.stats().snapshot().faults, 0);
}

#[test]
fn spiffe_authz_takes_trusted_peers_and_refuses_others() {
    let plugin = built_plugin("spiffe-authz", r#"{"trust_domains":["east.example"]}"#);
    const PEER: &str = "connection.uri_san_peer_certificate";
    const FRONTEND: &str = "spiffe://east.example/ns/shop/sa/frontend";
    let connect = |properties| {
        let mut stream = plugin.tcp_stream(Box::new(Known(properties)));
        (
            stream.new_connection(),
            stream.property(&["weft", "deny_reason"]).map(|reason| String::from_utf8(reason).unwrap()),
        )
    };
    assert_eq!(connect(vec![(PEER, FRONTEND), ("weft.expected_spiffe_id", FRONTEND)]), (TcpOutcome::Continue, None));
    assert_eq!(connect(vec![(PEER, FRONTEND)]), (TcpOutcome::Continue, None));
    for (properties, reason) in [
        (vec![], "no valid SPIFFE identity"),
        (vec![(PEER, "spiffe://evil.example/ns/shop/sa/frontend")], "trust domain evil.example is not trusted"),
        (
            vec![(PEER, FRONTEND), ("weft.expected_spiffe_id", "spiffe://east.example/ns/shop/sa/x")],
            "not spiffe://east.example/ns/shop/sa/x",
        ),
    ] {
        let (outcome, why) = connect(properties);
        assert_eq!(outcome, TcpOutcome::Close);
        assert!(why.as_deref().unwrap().contains(reason), "{why:?}");
    }
}

#[test]
fn the_example_marks_requests_and_refuses_canaries() {
    let plugin = built_plugin(
        "canary-header",
        r#"{"deny_header":"x-canary","request_header":{"name":"x-weft-example","value":"hello"},
            "response_header":{"name":"x-seen-by","value":"canary"}}"#,
    );
    let mut stream = plugin.http_stream(Box::new(()));
    let mut headers = get("/");
    assert!(matches!(stream.request_headers(&mut headers, true), Outcome::Continue));
    assert_eq!(headers.get(b"x-weft-example"), Some(&b"hello"[..]));
    let mut response = Headers::response(StatusCode::OK, HeaderMap::new());
    assert!(matches!(stream.response_headers(&mut response, true), Outcome::Continue));
    assert_eq!(response.get(b"x-seen-by"), Some(&b"canary"[..]));
    stream.finish();

    headers.add(b"x-canary", b"").unwrap();
    let mut stream = plugin.http_stream(Box::new(()));
    let Outcome::Respond(response) = stream.request_headers(&mut headers, true) else { panic!() };
    assert_eq!(response.status, StatusCode::FORBIDDEN);
}
