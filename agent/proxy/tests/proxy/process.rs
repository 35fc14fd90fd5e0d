//! The process: its socket, its memory of the last configuration, its end.
use crate::lab::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_proxy::{
    app::App,
    capture::listeners::{Listener, Role},
};
use weft_proxy_api::wire::ToProxy;

#[tokio::test]
async fn a_restart_without_the_agent_goes_on_with_the_last_configuration() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let listen = "127.0.0.1:0".parse().unwrap();
    let node = Node::start(Role::Ingress, listen, Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.version = 7;
    drop(node.agent(config).await);
    node.app.drain().await;
    let node = Node::start_in(node.dir, Role::Ingress, listen, Some(server.address)).await;
    let mut stream = connect(net.ip(1), node.captured).await;
    stream.shutdown().await.unwrap();
    assert_eq!(say(&mut stream, "").await.unwrap(), format!("{}\n", net.ip(1)));
    assert_eq!(node.watch().await.status.config_version, 7);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_and_named_and_the_last_one_stays() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut agent = node.agent(config(net.ip(1), net.ip(2))).await;
    let mut bad = config(net.ip(1), net.ip(2));
    (bad.version, bad.deny_status) = (2, 200);
    agent.configure(bad).await;
    assert_eq!(agent.status.config_version, 1);
    assert!(agent.status.config_errors[0].contains("denyStatus 200"), "{:?}", agent.status.config_errors);
    agent.send_raw(b"{\"nonsense\": 1}\n").await;
    assert!(agent.status.config_errors[0].contains("not understood"), "{:?}", agent.status.config_errors);
    agent.configure(config(net.ip(1), net.ip(2))).await;
    assert_eq!(agent.status.config_errors, Vec::<String>::new());
    agent.send(&ToProxy::Status).await;
    assert_eq!(agent.status.config_version, 1);
}

#[tokio::test]
async fn a_missing_map_is_told_and_does_not_stop_the_proxy() {
    let net = Net::new();
    let dir = tempfile::tempdir().unwrap();
    let app = App::start(settings(&dir, None)).await.unwrap();
    let node = Node { app, captured: "127.0.0.1:1".parse().unwrap(), socket: dir.path().join("proxy.sock"), dir };
    let mut config = config(net.ip(1), net.ip(2));
    config.map_dir = "/nonexistent".into();
    let agent = node.agent(config).await;
    assert!(
        agent.status.config_errors[0].starts_with("no connections are captured: the map /nonexistent/LISTENERS"),
        "{:?}",
        agent.status.config_errors
    );
}

#[tokio::test]
async fn a_taken_metrics_port_is_named_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(&dir, Some(vec![]));
    settings.metrics = taken.local_addr().unwrap();
    let error = App::start(settings).await.err().unwrap().to_string();
    assert_eq!(
        error,
        format!("cannot serve metrics on {}: choose another address with --metrics", taken.local_addr().unwrap())
    );
}

#[tokio::test]
async fn metrics_are_served_in_text() {
    let net = Net::new();
    let server = Server::http(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.policies.insert(net.ip(2), policy(get("/a"), false));
    let _agent = node.agent(config).await;
    let mut client = Client::new(net.ip(1), node.captured).await;
    assert_eq!((client.request("GET", "/a").await.0, client.request("GET", "/b").await.0), (200, 403));
    let mut stream = TcpStream::connect(node.app.metrics_address).await.unwrap();
    let text = say(&mut stream, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    for line in [
        "weft_proxy_requests_total{verdict=\"forwarded\"} 1",
        "weft_proxy_requests_total{verdict=\"dropped\"} 1",
        "weft_proxy_plugin_requests_total{plugin=\"shop/http-policy\"} 2",
        "weft_proxy_open_connections 1",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

#[tokio::test]
async fn a_drain_lets_open_connections_end_and_takes_no_new_ones() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let agent = node.agent(config(net.ip(1), net.ip(2))).await;
    let mut stream = connect(net.ip(1), node.captured).await;
    let mut greeting = vec![0; net.ip(1).to_string().len() + 1];
    stream.read_exact(&mut greeting).await.unwrap();
    drop(agent);
    let (captured, drained) = (node.captured, tokio::spawn(node.app.drain()));
    let refused = async {
        while TcpStream::connect(captured).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("still accepting");
    stream.write_all(b"still here").await.unwrap();
    let mut echo = [0; 10];
    stream.read_exact(&mut echo).await.unwrap();
    assert!(!drained.is_finished());
    drop(stream);
    tokio::time::timeout(PATIENCE, drained).await.expect("not drained").unwrap();
}

#[test]
fn listeners_are_shared_between_workers() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = Listener { role: Role::Ingress, socket, original: None };
    assert_eq!(listener.try_clone().unwrap().socket.local_addr().unwrap(), address);
}
