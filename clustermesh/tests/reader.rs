//! Readers on real servers over real mutual TLS, through wires that are cut and frozen.
mod support;

use bytes::Bytes;
use std::time::Duration;
use support::{Cluster, Follower, Link, Wire, bundles};
use tokio::sync::mpsc;
use weft_clustermesh::{NodeReader, tls};
use weft_model::types::ClusterName;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_everything_and_then_every_change() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known).await;
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[server.address()]), Some(client));
    follower.until("a connection", |f| f.state.as_ref().is_some_and(|state| state.connected)).await;
    assert!(follower.cluster.is_none(), "nothing is handed on before the cluster has published");

    server.publish(east.state(&["node-1"]));
    follower.until_nodes(&["node-1"]).await;
    let cluster = follower.cluster.clone().unwrap();
    assert_eq!((cluster.id, cluster.alive, cluster.hbone), (1, true, true));
    assert_eq!(cluster.workloads, east.snapshot(&["node-1"]).workloads);
    follower.until("synced", |f| f.state.as_ref().is_some_and(|s| s.synced && s.weft && s.error.is_none())).await;

    server.publish(east.state(&["node-1", "node-2"]));
    let took = follower.until_nodes(&["node-1", "node-2"]).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    server.publish(east.state(&["node-2"]));
    follower.until_nodes(&["node-2"]).await;
    // An agent that has only just started publishes nothing, and takes nothing back.
    server.publish(Default::default());
    server.publish(east.state(&["node-2", "node-3"]));
    follower.until_nodes(&["node-2", "node-3"]).await;
    assert_eq!(follower.deaths, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_the_wire_was_cut_is_gone_after_it() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known).await;
    server.publish(east.state(&["node-1", "node-2"]));
    let link = Link::to(server.address()).await;
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[link.address]), Some(client));
    follower.until_nodes(&["node-1", "node-2"]).await;

    link.set(Wire::Cut);
    follower.until("a lost connection", |f| f.state.as_ref().is_some_and(|state| !state.connected)).await;
    server.publish(east.state(&["node-2"]));
    link.set(Wire::Open);
    follower.until_nodes(&["node-2"]).await;
    assert_eq!(follower.deaths, 0, "it was back in time");
}

/// The watch falls behind the server's history: it is canceled as compacted, and the reader lists again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_behind_the_history_lists_again() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known).await;
    let mut state = east.state(&["node-1"]);
    server.publish(state.clone());
    let link = Link::to(server.address()).await;
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[link.address]), Some(client));
    follower.until_nodes(&["node-1"]).await;

    link.set(Wire::Frozen);
    // More than the connection's windows and buffers hold.
    for round in 0..60u8 {
        state.insert("weft/state/filler".into(), Bytes::from(vec![round; 500_000]));
        server.publish(state.clone());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.publish(east.state(&["node-2"]));
    server.compact();
    link.set(Wire::Open);
    follower.until_nodes(&["node-2"]).await;
    assert_eq!(follower.deaths, 0);
    assert!(follower.errors.iter().any(|error| error.contains("history has moved on")), "{:?}", follower.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_server_ends_another_takes_its_place_and_the_cluster_lives_on() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let (first, second) = (east.serve("node-1", &known).await, east.serve("node-2", &known).await);
    first.publish(east.state(&["node-1", "node-2"]));
    second.publish(east.state(&["node-2"]));
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[first.address(), second.address()]), Some(client));
    follower.until_nodes(&["node-1", "node-2"]).await;
    drop(first);
    let took = follower.until_nodes(&["node-2"]).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    second.publish(east.state(&["node-2", "node-3"]));
    follower.until_nodes(&["node-2", "node-3"]).await;
    assert_eq!(follower.deaths, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_stops_answering_is_dead_within_ten_seconds_and_comes_back_by_itself() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known).await;
    server.publish(east.state(&["node-1"]));
    let link = Link::to(server.address()).await;
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[link.address]), Some(client));
    follower.until("alive", Follower::is_alive).await;

    link.set(Wire::Frozen);
    let took = follower.until("its death", |f| f.cluster.is_some() && !f.is_alive()).await;
    assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(follower.nodes(), ["node-1"], "what is known stays known");
    server.publish(east.state(&["node-2"]));
    link.set(Wire::Open);
    let took = follower.until("its return", |f| f.is_alive() && f.nodes() == ["node-2"]).await;
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_an_agent_of_a_connected_cluster_reads_nothing() {
    let (east, west, south) = (Cluster::new("east", 1), Cluster::new("west", 2), Cluster::new("south", 3));
    let known_to_east = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known_to_east).await;
    server.publish(east.state(&["node-1"]));
    let refused = async |identity, known, wanted: &str| {
        let client = tls::client(&identity, &known, east.ca.trust_domain()).unwrap();
        let mut follower = Follower::of(east.peer(&[server.address()]), Some(client));
        // A refusal can overtake the client's own writing, which then sees a broken pipe: the next try tells.
        follower.until(wanted, |f| f.error().contains(wanted)).await;
        assert!(follower.cluster.is_none());
    };
    refused(south.agent(), bundles(&[&east, &south]), "CertificateUnknown): has its cluster connected ours?").await;
    refused(
        west.workload("shop", "frontend"),
        bundles(&[&east, &west]),
        "CertificateUnknown): has its cluster connected ours?",
    )
    .await;
    refused(west.agent(), bundles(&[&west]), "trust domain east.example is not known here").await;

    // The cluster that answers is another than the one that was meant.
    let other = south.serve("node-1", &bundles(&[&south, &west])).await;
    let client = tls::client(&west.agent(), &bundles(&[&east, &west, &south]), east.ca.trust_domain()).unwrap();
    let mut follower = Follower::of(east.peer(&[other.address()]), Some(client));
    follower.until("an error", |f| f.error().contains("south.example")).await;
    assert!(
        follower.error().contains("expected spiffe://east.example/ns/weft-system/sa/weft-agent"),
        "{}",
        follower.error()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_no_more_connections_than_its_limit_and_the_next_when_one_ends() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let mut config = east.server_config("node-1");
    config.connections = 1;
    let server = east.serve_with(config, &known).await;
    server.publish(east.state(&["node-1"]));
    let client = tls::client(&west.agent(), &known, east.ca.trust_domain()).unwrap();
    let mut first = Follower::of(east.peer(&[server.address()]), Some(client.clone()));
    first.until_nodes(&["node-1"]).await;
    let mut second = Follower::of(east.peer(&[server.address()]), Some(client));
    second.until("a refusal", |f| f.error().contains("no connection within")).await;
    drop(first);
    second.until_nodes(&["node-1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_disconnected_reads_no_more_and_the_others_do_not_notice() {
    let (east, west, south) = (Cluster::new("east", 1), Cluster::new("west", 2), Cluster::new("south", 3));
    let known = bundles(&[&east, &west, &south]);
    let server = east.serve("node-1", &known).await;
    server.publish(east.state(&["node-1"]));
    let follow = |reader: &Cluster| {
        let client = tls::client(&reader.agent(), &bundles(&[&east]), east.ca.trust_domain()).unwrap();
        Follower::of(east.peer(&[server.address()]), Some(client))
    };
    let (mut west_reads, mut south_reads) = (follow(&west), follow(&south));
    west_reads.until_nodes(&["node-1"]).await;
    south_reads.until_nodes(&["node-1"]).await;

    known.replace([&east, &south].map(|c| (c.ca.trust_domain(), c.ca.bundle_pem()))).unwrap();
    server.keep_only(known.trust_domains());
    west_reads.until("its refusal", |f| f.error().contains("has its cluster connected ours?")).await;
    server.publish(east.state(&["node-2"]));
    south_reads.until_nodes(&["node-2"]).await;
    assert!(south_reads.errors.is_empty(), "{:?}", south_reads.errors);
    assert_eq!(west_reads.nodes(), ["node-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_our_own_cluster_is_followed_by_its_own_word() {
    let east = Cluster::new("east", 1);
    let known = bundles(&[&east]);
    let server = east.serve("node-1", &known).await;
    let client = tls::client(&east.agent(), &known, east.ca.trust_domain()).unwrap();
    let (sender, mut updates) = mpsc::channel(4);
    let cluster: ClusterName = east.name.clone();
    let _reader = NodeReader::spawn(cluster, "node-1".into(), server.address().to_string(), Some(client), sender);

    let mut snapshot = east.snapshot(&["node-1", "node-2"]);
    let publish = |snapshot: &_| {
        let options = weft_clustermesh::core::ExportOptions { hbone: true, since: std::time::SystemTime::UNIX_EPOCH };
        server.publish(weft_clustermesh::core::export(snapshot, &options));
    };
    publish(&snapshot);
    assert_eq!(updates.recv().await.unwrap().facts, Some(snapshot.nodes[0].clone()));
    snapshot.nodes[0].wireguard_key = Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into());
    publish(&snapshot);
    assert_eq!(updates.recv().await.unwrap().facts, Some(snapshot.nodes[0].clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_that_names_it() {
    let east = Cluster::new("east", 1);
    let known = bundles(&[&east]);
    let server = east.serve("node-1", &known).await;
    let mut config = east.server_config("node-2");
    config.listen = server.address();
    let error =
        weft_clustermesh::MeshServer::start(config, tls::server(&east.agent(), &known).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains(&format!("cannot listen on {}", server.address())), "{error}");
}
