use super::*;

struct Sample {
    method: &'static str,
    path: &'static str,
    host: &'static str,
    headers: &'static [(&'static str, &'static str)],
}

impl Request for Sample {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn host(&self) -> Option<Vec<u8>> {
        Some(self.host.as_bytes().to_vec())
    }
    fn header(&self, name: &str) -> Option<Vec<u8>> {
        self.headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.as_bytes().to_vec())
    }
}

fn request(method: &'static str, path: &'static str) -> Sample {
    Sample { method, path, host: "backend:8080", headers: &[] }
}

fn sets(rules: &str) -> RuleSets {
    let config = Config::parse(format!(r#"{{"sets":{{"s":{rules}}}}}"#).as_bytes()).unwrap();
    let (sets, bad) = RuleSets::compile(config);
    assert!(bad.is_empty());
    sets
}

fn frontend() -> RuleSets {
    sets(
        r#"[{"policy":"shop/frontend","method":"GET","path":"/api/users/.*"},
            {"policy":"shop/login","method":"POST","path":"/api/login"}]"#,
    )
}

#[test]
fn what_the_examples_allow_passes_and_all_else_is_denied() {
    let sets = frontend();
    let judge = |method, path| sets.judge(Some(b"s"), &request(method, path));
    assert_eq!(judge("GET", "/api/users/42"), Verdict::Allow("shop/frontend"));
    assert_eq!(judge("GET", "/api/users/42?full=yes"), Verdict::Allow("shop/frontend"));
    assert_eq!(judge("POST", "/api/login"), Verdict::Allow("shop/login"));
    for (method, path) in [
        ("POST", "/admin/delete"),
        ("POST", "/api/users/42"),
        ("get", "/api/users/42"),
        ("GET", "/api/login"),
        ("POST", "/api/login?x"),
        ("POST", "/api/login/"),
        ("GET", "/x/api/users/42"),
        ("GET", ""),
    ] {
        assert_eq!(judge(method, path), Verdict::Deny(Denial::NoRule), "{method} {path}");
    }
}

#[test]
fn a_request_without_a_known_set_is_denied() {
    let sets = frontend();
    assert_eq!(sets.judge(None, &request("GET", "/api/users/1")), Verdict::Deny(Denial::NoSet));
    assert_eq!(sets.judge(Some(b"other"), &request("GET", "/api/users/1")), Verdict::Deny(Denial::NoSet));
}

#[test]
fn another_spelling_of_a_path_does_not_pass_the_policy() {
    let sets = frontend();
    for path in [
        "/api/users/../../admin/delete",
        "/api/users/..%2f..%2fadmin/delete",
        "/api/users/%2e%2e/%2e%2e/admin",
        "/api/users/..;/..;/admin",
        "/api/users/..\\..\\admin",
        "/api/users/%252e%252e/x",
    ] {
        assert_eq!(sets.judge(Some(b"s"), &request("GET", path)), Verdict::Deny(Denial::Spelling), "{path}");
    }
    for path in ["/api/users/a%20b", "/api/users/a%2fb", "/api/users//42", "/api/users/x/../42"] {
        assert_eq!(sets.judge(Some(b"s"), &request("GET", path)), Verdict::Allow("shop/frontend"), "{path}");
    }
}

#[test]
fn a_host_matches_with_and_without_its_port() {
    let judge = |host: &str| {
        let sets = sets(&format!(r#"[{{"policy":"p","host":"{host}"}}]"#));
        sets.judge(Some(b"s"), &request("GET", "/")) == Verdict::Allow("p")
    };
    assert!(judge("backend") && judge("backend:8080") && judge("back.*"));
    assert!(!judge("backend:80") && !judge("end") && !judge("backend:"));
}

#[test]
fn headers_must_be_there_with_their_value() {
    let sets = sets(r#"[{"policy":"p","headers":["X-Team: blue","X-Here"]}]"#);
    let judge = |headers| sets.judge(Some(b"s"), &Sample { headers, ..request("GET", "/") }) == Verdict::Allow("p");
    assert!(judge(&[("x-team", "blue"), ("x-here", "")]));
    assert!(!judge(&[("x-team", "blue")]) && !judge(&[("x-team", "blues"), ("x-here", "")]) && !judge(&[]));
}

#[test]
fn methods_may_be_expressions() {
    let sets = sets(
        r#"[{"policy":"names","method":"GET|HEAD"},{"policy":"pattern","method":"P.*"},{"policy":"any","path":"/open"}]"#,
    );
    let judge = |method, path| sets.judge(Some(b"s"), &request(method, path));
    assert_eq!(judge("HEAD", "/"), Verdict::Allow("names"));
    assert_eq!(judge("PUT", "/"), Verdict::Allow("pattern"));
    assert_eq!(judge("DELETE", "/open"), Verdict::Allow("any"));
    assert_eq!(judge("DELETE", "/"), Verdict::Deny(Denial::NoRule));
}

#[test]
fn the_first_of_several_matching_rules_is_named() {
    let sets = sets(r#"[{"policy":"a","path":"/b.*"},{"policy":"b"},{"policy":"c","path":"/.*"}]"#);
    assert_eq!(sets.judge(Some(b"s"), &request("GET", "/b")), Verdict::Allow("a"));
    assert_eq!(sets.judge(Some(b"s"), &request("GET", "/a")), Verdict::Allow("b"));
}

#[test]
fn a_bad_rule_matches_nothing_and_the_others_hold() {
    let json = br#"{"sets":{"s":[{"policy":"bad","path":"/("},{"policy":"good","path":"/ok"},{"headers":[": x"]}]}}"#;
    let (sets, bad) = RuleSets::compile(Config::parse(json).unwrap());
    assert_eq!(bad.len(), 2);
    assert!(bad[0].policy == "bad" && bad[0].reason.contains("path \"/(\""), "{}", bad[0].reason);
    assert_eq!(sets.judge(Some(b"s"), &request("GET", "/ok")), Verdict::Allow("good"));
    assert_eq!(sets.judge(Some(b"s"), &request("GET", "/(")), Verdict::Deny(Denial::NoRule));
}
