//! Connections that are judged as a whole.
use crate::lab::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::capture::listeners::Role;
use weft_proxy_api::flow::Verdict;

#[tokio::test]
async fn an_allowed_connection_passes_both_ways_and_the_server_sees_the_client() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.policies.insert(net.ip(2), policy(None, false));
    let mut agent = node.agent(config).await;
    let mut stream = connect(net.ip(1), node.captured).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(say(&mut stream, "").await.unwrap(), format!("{}\nhello", net.ip(1)));
    let flow = agent.flow().await;
    assert_eq!((flow.verdict, flow.policy.as_str()), (Verdict::Forwarded, "shop/api-rules"));
    assert_eq!((flow.source.pod.as_str(), flow.destination.pod.as_str()), ("shop/frontend", "shop/api"));
    assert_eq!(
        (flow.destination.address, flow.direction.as_str(), flow.node.as_str()),
        (server.address, "ingress", "n1")
    );
}

#[tokio::test]
async fn a_connection_that_policy_does_not_allow_is_reset() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.policies.insert(net.ip(2), policy(None, false));
    let mut agent = node.agent(config).await;
    assert!(refused(net.ip(9), node.captured).await);
    let flow = agent.flow().await;
    assert_eq!((flow.verdict, flow.drop_reason.as_str()), (Verdict::Dropped, "policy-denied"));
    assert_eq!((flow.source.identity, flow.source.pod.as_str()), (2, "world"));
}

#[tokio::test]
async fn plain_text_is_reset_where_authentication_is_required() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.policies.insert(net.ip(2), policy(None, true));
    let mut agent = node.agent(config).await;
    assert!(refused(net.ip(1), node.captured).await);
    assert_eq!(agent.flow().await.drop_reason, "authentication required: plain text connection refused");
}

#[tokio::test]
async fn before_the_first_configuration_everything_is_refused() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    assert!(refused(net.ip(1), node.captured).await);
    // The flow was kept for the first reader.
    assert_eq!(node.watch().await.flow().await.drop_reason, "the destination is not a pod of this node");
}

#[tokio::test]
async fn a_server_that_refuses_is_a_reset_and_an_error_flow() {
    let net = Net::new();
    let gone = { Server::tcp(net.ip(2)).await.address };
    tokio::task::yield_now().await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(gone)).await;
    let mut agent = node.agent(config(net.ip(1), net.ip(2))).await;
    assert!(refused(net.ip(1), node.captured).await);
    let flow = agent.flow().await;
    assert_eq!(flow.verdict, Verdict::Error);
    assert!(flow.drop_reason.contains("cannot be reached"), "{}", flow.drop_reason);
}

#[tokio::test]
async fn a_plugin_without_ports_leaves_other_protocols_alone() {
    let net = Net::new();
    let server = Server::tcp(net.ip(2)).await;
    let node = Node::start(Role::Ingress, "127.0.0.1:0".parse().unwrap(), Some(server.address)).await;
    let mut config = config(net.ip(1), net.ip(2));
    config.plugins.push(plugin("absent", "/nonexistent.wasm".into(), Some(vec![net.ip(2)])));
    let _agent = node.agent(config).await;
    let mut stream = connect(net.ip(1), node.captured).await;
    let mut first = vec![0; net.ip(1).to_string().len() + 1];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(first, format!("{}\n", net.ip(1)).into_bytes());
}
