//! Requests, judged one by one.
use crate::lab::*;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::capture::listeners::Role;
use weft_proxy_api::{config::ProxyConfig, flow::Verdict};

struct Scene {
    net: Net,
    node: Node,
    agent: Agent,
    _server: Server,
}

/// An API server behind a proxy, with what `change` does to the configuration.
async fn scene(change: impl FnOnce(&Net, &mut ProxyConfig)) -> Scene {
    let net = Net::new();
    let server = Server::http(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    change(&net, &mut config);
    let agent = node.agent(config).await;
    Scene { net, node, agent, _server: server }
}

fn rules(path: &str) -> impl FnOnce(&Net, &mut ProxyConfig) {
    let rules = get(path);
    move |net, config| {
        config.policies.insert(net.ip(2), policy(rules, false));
    }
}

#[tokio::test]
async fn each_request_of_a_connection_is_judged_by_the_http_policy_plugin() {
    let mut scene = scene(rules("/api/users/.*")).await;
    assert_eq!(scene.agent.status.config_errors, Vec::<String>::new());
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    let (status, answer) = client.request("GET", "/api/users/42").await;
    assert_eq!(status, 200);
    assert!(answer.contains(&format!("x-peer: {}", scene.net.ip(1))), "{answer}");
    let (status, answer) = client.request("POST", "/admin/delete").await;
    assert_eq!(status, 403);
    assert!(answer.ends_with("Access denied\n"), "{answer}");
    assert_eq!(client.request("GET", "/api/users/43").await.0, 200);
    let flow = scene.agent.flow().await;
    let http = flow.http.unwrap();
    assert_eq!(
        (flow.verdict, flow.policy.as_str(), flow.plugin.as_str()),
        (Verdict::Forwarded, "shop/api-rules", "http-policy")
    );
    assert_eq!(
        (http.method.as_str(), http.path.as_str(), http.host.as_str(), http.status),
        ("GET", "/api/users/42", "api.shop", 200)
    );
    let flow = scene.agent.flow().await;
    assert_eq!(
        (flow.verdict, flow.drop_reason.as_str(), flow.http.unwrap().status),
        (Verdict::Dropped, "policy-denied", 403)
    );
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_judged_too() {
    let scene = scene(rules("/api/.*")).await;
    let stream = connect(scene.net.ip(1), scene.node.captured).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    for (path, status) in [("/api/a", 200), ("/admin", 403), ("/api/b", 200)] {
        let request = Request::get(format!("http://api.shop{path}")).body(Full::<Bytes>::from("body")).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        if status == 200 {
            assert_eq!(response.headers()["x-version"], "HTTP/2.0");
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
        }
    }
    driver.abort();
}

#[tokio::test]
async fn a_changed_policy_counts_from_the_next_request_on() {
    let mut scene = scene(rules("/a")).await;
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    assert_eq!(client.request("GET", "/a").await.0, 200);
    let mut config = config(scene.net.ip(1), scene.net.ip(2));
    config.version = 2;
    rules("/b")(&scene.net, &mut config);
    scene.agent.configure(config).await;
    assert_eq!(scene.agent.status.config_version, 2);
    assert_eq!((client.request("GET", "/a").await.0, client.request("GET", "/b").await.0), (403, 200));
}

#[tokio::test]
async fn without_the_http_policy_plugin_nothing_passes() {
    let mut scene = scene(|net, config| {
        rules("/.*")(net, config);
        config.plugins.clear();
    })
    .await;
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    assert_eq!(client.request("GET", "/").await.0, 503);
    let flow = scene.agent.flow().await;
    assert_eq!(
        (flow.verdict, flow.drop_reason.as_str()),
        (Verdict::Dropped, "plugin http-policy: it does not run: it is not configured")
    );
}

#[tokio::test]
async fn a_plugin_that_cannot_be_loaded_answers_by_its_fail_strategy_and_says_why() {
    for (fail_open, status) in [(false, 503), (true, 200)] {
        let scene = scene(|net, config| {
            let mut plugin = plugin("mine", "/nonexistent.wasm".into(), Some(vec![net.ip(2)]));
            plugin.plugin.fail_open = fail_open;
            config.plugins.push(plugin);
        })
        .await;
        let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
        assert_eq!(client.request("GET", "/").await.0, status);
        let plugins = &scene.agent.status.plugins;
        let mine = plugins.iter().find(|plugin| plugin.name == "shop/mine").unwrap();
        assert!(mine.state.starts_with("failed: plugin shop/mine: /nonexistent.wasm cannot be read"), "{}", mine.state);
        assert!(plugins.iter().any(|plugin| plugin.state == "running"));
    }
}

#[tokio::test]
async fn a_wrong_hash_and_a_file_that_is_no_module_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.wasm");
    std::fs::write(&text, "hello").unwrap();
    let scene = scene(|net, config| {
        let mut hash = config.plugins[0].clone();
        hash.plugin.name.name = "hash".into();
        hash.plugin.sha256 = "00".repeat(32);
        hash.targets = Some(vec![net.ip(2)]);
        config.plugins.push(hash);
        config.plugins.push(plugin("text", text, Some(vec![net.ip(2)])));
    })
    .await;
    let errors = scene.agent.status.config_errors.join("\n");
    assert!(errors.contains("plugin shop/hash: wrong module: its SHA-256 is"), "{errors}");
    assert!(errors.contains("plugin shop/text: not a WebAssembly module"), "{errors}");
}

#[tokio::test]
async fn bytes_that_are_not_http_get_400_and_a_flow() {
    let mut scene = scene(rules("/.*")).await;
    let mut stream = connect(scene.net.ip(1), scene.node.captured).await;
    let answer = say(&mut stream, "SSH-2.0-x\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(scene.agent.flow().await.drop_reason, "not HTTP, where policy or plugins take only HTTP");
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_get_400() {
    let scene = scene(rules("/.*")).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /x/../y HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    ] {
        let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
        assert_eq!(client.raw(request).await.0, 400, "{request:?}");
    }
}

#[tokio::test]
async fn bodies_pass_chunked_and_after_100_continue() {
    let scene = scene(|net, config| {
        let mut rules = get("/.*").unwrap();
        rules[0].method = None;
        config.policies.insert(net.ip(2), policy(Some(rules), false));
    })
    .await;
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    let chunked =
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let (status, answer) = client.raw(chunked).await;
    assert_eq!((status, answer.ends_with("\r\n\r\nhello world")), (200, true), "{answer}");
    // Two lengths: the chunks count, and the server sees only them.
    let two =
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut smuggler = Client::new(scene.net.ip(1), scene.node.captured).await;
    let (status, answer) = smuggler.raw(two).await;
    assert_eq!((status, answer.ends_with("\r\n\r\nhello")), (200, true), "{answer}");
    let expect = "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let (status, _) = client.raw(expect).await;
    assert_eq!(status, 100);
    let (status, answer) = client.raw("hello").await;
    assert_eq!((status, answer.ends_with("\r\n\r\nhello")), (200, true), "{answer}");
    let body = "x".repeat(1 << 20);
    let (status, answer) =
        client.raw(&format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    assert_eq!((status, answer.ends_with(&body)), (200, true));
}

#[tokio::test]
async fn an_upgraded_connection_becomes_a_tunnel() {
    let scene = scene(rules("/chat")).await;
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    assert_eq!(client.raw(upgrade).await.0, 101);
    for text in ["one", "two"] {
        client.stream.write_all(text.as_bytes()).await.unwrap();
        let mut echo = [0; 3];
        tokio::time::timeout(PATIENCE, client.stream.read_exact(&mut echo)).await.unwrap().unwrap();
        assert_eq!(&echo, text.as_bytes());
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_503_and_an_error_flow() {
    let net = Net::new();
    let gone = { Server::http(net.ip(2)).await.address };
    tokio::task::yield_now().await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(gone)).await;
    let mut config = config(net.ip(1), net.ip(2));
    rules("/.*")(&net, &mut config);
    let mut agent = node.agent(config).await;
    let mut client = Client::new(net.ip(1), node.captured).await;
    assert_eq!(client.request("GET", "/").await.0, 503);
    let flow = agent.flow().await;
    assert_eq!((flow.verdict, flow.http.unwrap().status), (Verdict::Error, 503));
}

#[tokio::test]
async fn a_plugin_that_traps_or_loops_costs_its_own_request_by_its_fail_strategy() {
    let dir = tempfile::tempdir().unwrap();
    for (name, body) in [("trap", TRAP), ("loop", LOOP)] {
        for (fail_open, status) in [(false, 503), (true, 200)] {
            let file = dir.path().join(name);
            std::fs::write(&file, module(body)).unwrap();
            let mut scene = scene(|net, config| {
                let mut plugin = plugin(name, file, Some(vec![net.ip(2)]));
                plugin.plugin.fail_open = fail_open;
                config.plugins.push(plugin);
            })
            .await;
            assert_eq!(scene.agent.status.config_errors, Vec::<String>::new());
            let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
            assert_eq!(client.request("GET", "/").await.0, status, "{name}");
            let flow = scene.agent.flow().await;
            assert_eq!(flow.drop_reason.contains("plugin shop/"), !fail_open, "{}", flow.drop_reason);
            scene.agent.send(&weft_proxy_api::wire::ToProxy::Status).await;
            let faults = scene.agent.status.plugins.iter().find(|plugin| plugin.name.ends_with(name)).unwrap().faults;
            assert_eq!(faults, 1, "{name}");
        }
    }
}

#[tokio::test]
async fn a_plugin_is_changed_while_a_connection_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (trap, pass) = (dir.path().join("trap"), dir.path().join("pass"));
    std::fs::write(&trap, module(TRAP)).unwrap();
    std::fs::write(&pass, module(PASS)).unwrap();
    let mut scene = scene(|net, config| config.plugins.push(plugin("mine", trap, Some(vec![net.ip(2)])))).await;
    let mut client = Client::new(scene.net.ip(1), scene.node.captured).await;
    assert_eq!(client.request("GET", "/").await.0, 503);
    let mut config = config(scene.net.ip(1), scene.net.ip(2));
    config.version = 2;
    config.plugins.push(plugin("mine", pass, Some(vec![scene.net.ip(2)])));
    scene.agent.configure(config).await;
    assert_eq!(client.request("GET", "/").await.0, 200);
}
