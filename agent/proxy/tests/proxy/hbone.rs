//! Mutual TLS between nodes, and on one.
use crate::lab::*;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use std::{net::SocketAddr, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;
use weft_certs::{ExpectedId, Identity, SharedIdentity, TrustBundles, client_config};
use weft_proxy::capture::listeners::Role;
use weft_proxy_api::{config::ProxyConfig, flow::Verdict};

struct Scene {
    net: Net,
    ca: Ca,
    client: Node,
    server: Node,
    from_client: Agent,
    from_server: Agent,
    api: Server,
}

/// A frontend on one node, an API on another that takes mutual TLS only.
async fn scene(api: Server, net: Net, change: impl Fn(&Net, &mut ProxyConfig)) -> Scene {
    let ca = Ca::new();
    let hbone = SocketAddr::new(net.ip(2), 15008);
    let client = Node::start(Role::Outbound, "127.0.0.1:0".parse().unwrap(), Some(api.address)).await;
    let server = Node::start(Role::Hbone, hbone, None).await;
    let mut here = config(net.ip(1), net.ip(2));
    here.workloads[1].local = false;
    here.auth_destinations = vec![(net.ip(2), 0)];
    ca.equip(&mut here, &["frontend"]);
    let mut there = config(net.ip(1), net.ip(2));
    there.workloads[0].local = false;
    there.policies.insert(net.ip(2), policy(None, true));
    ca.equip(&mut there, &["api"]);
    change(&net, &mut here);
    change(&net, &mut there);
    let (from_client, from_server) = (client.agent(here).await, server.agent(there).await);
    Scene { net, ca, client, server, from_client, from_server, api }
}

async fn tcp_scene(change: impl Fn(&Net, &mut ProxyConfig)) -> Scene {
    let net = Net::new();
    scene(Server::tcp(net.ip(2)).await, net, change).await
}

#[tokio::test]
async fn a_connection_goes_by_mutual_tls_and_both_ends_tell_the_identities() {
    let mut scene = tcp_scene(|_, _| {}).await;
    // More than one on the same tunnel.
    for _ in 0..3 {
        let mut stream = connect(scene.net.ip(1), scene.client.captured).await;
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(say(&mut stream, "").await.unwrap(), format!("{}\nhello", scene.net.ip(1)));
    }
    let flow = scene.from_server.flow().await;
    assert_eq!((flow.verdict, flow.policy.as_str()), (Verdict::Forwarded, "shop/api-rules"));
    assert_eq!(flow.peer_spiffe_id.as_deref(), Some("spiffe://east.example/ns/shop/sa/frontend"));
    assert_eq!((flow.source.pod.as_str(), flow.destination.address), ("shop/frontend", scene.api.address));
    let flow = scene.from_client.flow().await;
    assert_eq!((flow.verdict, flow.direction.as_str()), (Verdict::Forwarded, "egress"));
    assert_eq!(flow.peer_spiffe_id.as_deref(), Some("spiffe://east.example/ns/shop/sa/api"));
    assert!(scene.from_client.status.svid_seconds_left.unwrap() > 3000);
}

#[tokio::test]
async fn http_rules_hold_inside_a_tunnel() {
    let net = Net::new();
    let api = Server::http(net.ip(2)).await;
    let mut scene = scene(api, net, |net, config| {
        if config.policies.contains_key(&net.ip(2)) {
            config.policies.insert(net.ip(2), policy(get("/api/.*"), true));
        }
    })
    .await;
    let mut client = Client::new(scene.net.ip(1), scene.client.captured).await;
    let (status, answer) = client.request("GET", "/api/users").await;
    assert_eq!(status, 200);
    assert!(answer.contains(&format!("x-peer: {}", scene.net.ip(1))), "{answer}");
    assert_eq!(client.request("GET", "/admin").await.0, 403);
    let flow = scene.from_server.flow().await;
    assert_eq!((flow.http.unwrap().path.as_str(), flow.peer_spiffe_id.is_some()), ("/api/users", true));
}

#[tokio::test]
async fn without_a_certificate_the_connection_is_refused_and_never_goes_out_plain() {
    let mut scene = tcp_scene(|_, config| config.svids.retain(|svid| svid.spiffe_id == id("api"))).await;
    assert!(refused(scene.net.ip(1), scene.client.captured).await);
    let flow = scene.from_client.flow().await;
    assert_eq!(flow.verdict, Verdict::Error);
    assert!(
        flow.drop_reason.contains("no valid SVID for spiffe://east.example/ns/shop/sa/frontend"),
        "{}",
        flow.drop_reason
    );
}

#[tokio::test]
async fn a_policy_that_denies_is_a_reset_with_the_reason_on_both_nodes() {
    let mut scene = tcp_scene(|net, config| {
        if let Some(policy) = config.policies.get_mut(&net.ip(2)) {
            policy.ingress.clear();
        }
    })
    .await;
    assert!(refused(scene.net.ip(1), scene.client.captured).await);
    let flow = scene.from_server.flow().await;
    assert_eq!((flow.drop_reason.as_str(), flow.peer_spiffe_id.is_some()), ("policy-denied", true));
    assert!(scene.from_client.flow().await.drop_reason.contains("policy denies it"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_in_the_handshake() {
    let mut scene = tcp_scene(|_, _| {}).await;
    let mut stream = TcpStream::connect(scene.server.captured).await.unwrap();
    let _ = say(&mut stream, "GET / HTTP/1.1\r\n\r\n").await;
    let flow = scene.from_server.flow().await;
    assert_eq!(flow.verdict, Verdict::Dropped);
    assert!(flow.drop_reason.starts_with("no valid SPIFFE identity"), "{}", flow.drop_reason);
}

#[tokio::test]
async fn an_identity_from_another_address_than_its_workload_is_refused_by_spiffe_authz() {
    let mut scene = tcp_scene(|_, _| {}).await;
    // The API's own certificate, shown from the frontend's address.
    let stream = connect(scene.net.ip(1), scene.server.captured).await;
    let mut sender = match tunnel(&scene.ca, "api", stream).await {
        Ok(sender) => sender,
        Err(_) => return assert!(scene.from_server.flow().await.drop_reason.contains("spiffe-authz")),
    };
    assert!(sender.send_request(request(Method::CONNECT, scene.api.address)).await.is_err());
    let flow = scene.from_server.flow().await;
    assert_eq!((flow.verdict, flow.plugin.as_str()), (Verdict::Dropped, "spiffe-authz"));
}

#[tokio::test]
async fn connect_is_answered_as_ztunnel_expects() {
    let scene = tcp_scene(|_, _| {}).await;
    let stream = connect(scene.net.ip(1), scene.server.captured).await;
    let mut sender = tunnel(&scene.ca, "frontend", stream).await.unwrap();
    let elsewhere = SocketAddr::new(scene.net.ip(3), 80);
    let gone = SocketAddr::new(scene.net.ip(2), 1);
    for (method, address, status) in
        [(Method::CONNECT, elsewhere, 400), (Method::CONNECT, gone, 503), (Method::CONNECT, scene.api.address, 200)]
    {
        let response = sender.send_request(request(method, address)).await.unwrap();
        assert_eq!(response.status(), status, "{address}");
        assert_eq!(response.headers().contains_key("baggage"), status == 200);
    }
    let get = Request::get(format!("http://{}/", scene.api.address)).body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(get).await.unwrap().status(), 400);
}

#[tokio::test]
async fn on_one_node_mutual_tls_is_the_same() {
    let net = Net::new();
    let api = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Outbound, "127.0.0.1:0".parse().unwrap(), Some(api.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.auth_destinations = vec![(net.ip(2), api.address.port())];
    config.policies.insert(net.ip(2), policy(None, true));
    Ca::new().equip(&mut config, &["frontend", "api"]);
    let mut agent = node.agent(config).await;
    let mut stream = connect(net.ip(1), node.captured).await;
    stream.shutdown().await.unwrap();
    assert_eq!(say(&mut stream, "").await.unwrap(), format!("{}\n", net.ip(1)));
    let mut flows = [agent.flow().await, agent.flow().await];
    flows.sort_by_key(|flow| flow.direction.clone());
    let told: Vec<_> = flows.iter().map(|f| (f.direction.as_str(), f.peer_spiffe_id.as_deref().unwrap())).collect();
    assert_eq!(
        told,
        [("egress", "spiffe://east.example/ns/shop/sa/api"), ("ingress", "spiffe://east.example/ns/shop/sa/frontend")]
    );
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

/// A tunnel as a client of our own opens it.
async fn tunnel(ca: &Ca, account: &str, stream: TcpStream) -> Result<Sender, Box<dyn std::error::Error>> {
    let svid = ca.svid(account);
    let identity = SharedIdentity::new(Identity::from_pem(&svid.certificates, &svid.private_key).unwrap());
    let bundles = TrustBundles::from_pem([(&domain(), ca.ca.bundle_pem())]).unwrap();
    let tls: Arc<_> = client_config(&identity, &bundles, ExpectedId::Known, &[b"h2"]).unwrap();
    let name = ServerName::IpAddress(stream.peer_addr().unwrap().ip().into());
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(method: Method, to: SocketAddr) -> Request<Empty<Bytes>> {
    Request::builder().method(method).uri(to.to_string()).body(Empty::new()).unwrap()
}
