//! What goes to the proxy. Its slots hold listeners here; that connections arrive there is for tests on real sockets.
use crate::{BOTH, NEIGHBOUR_INGRESS, POD, POD_EGRESS, POD_INGRESS, REMOTE, at, for_each_family};
use weft_bpf_abi::{
    event::Reason,
    mark,
    net::{Endpoint, HBONE_PORT, TCP, UDP, identity, listener},
    policy::PolicyEntry,
    program::{FROM_NETWORK, FROM_POD, TO_POD},
};
use weft_bpf_tests::{
    bench::{
        Bench,
        Outcome::{self, Dropped, Passed, Turned},
    },
    packets::{Tcp, tcp, udp},
};

const PROXIED: u32 = Endpoint::PROXIED;

/// What becomes of a packet while the proxy listens in no slot, in another role's slots, and in this role's.
fn goes_to(bench: &mut Bench, program: &str, packet: &[u8], mark: u32, role: u32) {
    assert_eq!(bench.send_marked(program, packet, mark), Dropped(Reason::NoListener), "nobody listens");
    let is_v6 = u32::from(packet[12..14] == [0x86, 0xdd]);
    let others: Vec<_> =
        (0..listener::COUNT).filter(|slot| *slot != role + is_v6).map(|slot| bench.listener(slot)).collect();
    assert_eq!(bench.send_marked(program, packet, mark), Dropped(Reason::NoListener), "others listen");
    let own = bench.listener(role + is_v6);
    let outcome = bench.send_marked(program, packet, mark);
    assert!(is_handed_over(outcome), "{outcome:?}");
    drop((others, own));
}

/// BPF_PROG_TEST_RUN does not say that it is an ingress hook, so the kernel refuses the assignment itself.
fn is_handed_over(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Captured | Dropped(Reason::AssignFailed))
}

#[test]
fn l7_rules_on_egress_lead_to_the_outbound_listener() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, TCP, 80, PolicyEntry::L7);
        let packet = tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn);
        goes_to(bench, FROM_POD, &packet, 0, listener::OUTBOUND4);
        assert_eq!(bench.connections().len(), 0);
        // Allowed whole by another rule.
        bench.rule(2, POD_EGRESS, REMOTE, 0, 80, PolicyEntry::ALLOW);
        assert_eq!(bench.send(FROM_POD, &packet), Passed);
    });
}

#[test]
fn l7_rules_allow_no_other_protocol_than_tcp() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, 0, 80, PolicyEntry::L7);
        bench.rule(2, POD_INGRESS, REMOTE, UDP, 80, PolicyEntry::L7);
        let denied = Dropped(Reason::PolicyDenied);
        assert_eq!(bench.send(FROM_POD, &udp(&at(cast.pod, 4000), &at(cast.remote, 80))), denied);
        assert_eq!(bench.send(TO_POD, &udp(&at(cast.remote, 4000), &at(cast.pod, 80))), denied);
    });
}

#[test]
fn a_destination_that_takes_mutual_tls_only_is_reached_through_the_outbound_listener() {
    for port in [8080, 0] {
        for_each_family(0, 0, |bench, cast| {
            bench.auth(cast.remote, port);
            let opens = tcp(&at(cast.pod, 4000), &at(cast.remote, 8080), Tcp::Syn);
            goes_to(bench, FROM_POD, &opens, 0, listener::OUTBOUND4);
            if port != 0 {
                assert_eq!(bench.send(FROM_POD, &tcp(&at(cast.pod, 4000), &at(cast.remote, 81), Tcp::Syn)), Passed);
            }
            assert_eq!(bench.send(FROM_POD, &udp(&at(cast.pod, 4000), &at(cast.remote, 8080))), Passed);
        });
    }
}

#[test]
fn a_denied_connection_never_reaches_the_proxy() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.auth(cast.remote, 8080);
        let _listener = bench.listener(listener::OUTBOUND4);
        let packet = tcp(&at(cast.pod, 4000), &at(cast.remote, 8080), Tcp::Syn);
        assert_eq!(bench.send(FROM_POD, &packet), Dropped(Reason::PolicyDenied));
    });
}

#[test]
fn a_connection_that_was_open_before_its_destination_asked_for_mutual_tls_never_goes_on_in_plain() {
    for_each_family(0, 0, |bench, cast| {
        let (pod, remote) = (at(cast.pod, 4000), at(cast.remote, 8080));
        assert_eq!(bench.send(FROM_POD, &tcp(&pod, &remote, Tcp::Syn)), Passed);
        bench.auth(cast.remote, 8080);
        goes_to(bench, FROM_POD, &tcp(&pod, &remote, Tcp::Ack), 0, listener::OUTBOUND4);
    });
}

#[test]
fn a_neighbour_with_l7_or_mutual_tls_rules_is_reached_through_the_ingress_listener() {
    for flags in [PolicyEntry::L7, PolicyEntry::AUTH, PolicyEntry::AUTH | PolicyEntry::ALLOW] {
        for_each_family(0, BOTH | PROXIED, |bench, cast| {
            bench.rule(1, NEIGHBOUR_INGRESS, POD, TCP, 80, flags);
            bench.rule(2, NEIGHBOUR_INGRESS, POD, TCP, 81, PolicyEntry::ALLOW);
            let opens = tcp(&at(cast.pod, 4000), &at(cast.neighbour, 80), Tcp::Syn);
            goes_to(bench, FROM_POD, &opens, 0, listener::INGRESS4);
            // What the proxy is not for is left to the neighbour's own hook.
            for port in [81, 82] {
                let packet = tcp(&at(cast.pod, 4000), &at(cast.neighbour, port), Tcp::Syn);
                assert_eq!(bench.send(FROM_POD, &packet), Passed);
            }
        });
    }
}

#[test]
fn what_reaches_a_pod_without_the_proxy_turns_round_to_it() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_INGRESS, identity::ANY, TCP, 80, PolicyEntry::L7);
        let opens = tcp(&at(cast.remote, 5000), &at(cast.pod, 80), Tcp::Syn);
        assert_eq!(bench.send(TO_POD, &opens), Turned);
        goes_to(bench, FROM_POD, &opens, mark::TURNED, listener::INGRESS4);
        let hbone = tcp(&at(cast.remote, 5000), &at(cast.pod, HBONE_PORT), Tcp::Syn);
        assert_eq!(bench.send(TO_POD, &hbone), Turned);
    });
    for_each_family(0, 0, |bench, cast| {
        let hbone = tcp(&at(cast.remote, 5000), &at(cast.pod, HBONE_PORT), Tcp::Syn);
        goes_to(bench, FROM_POD, &hbone, mark::TURNED, listener::HBONE4);
    });
}

#[test]
fn what_the_proxy_sends_is_not_judged_again() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_INGRESS, identity::ANY, TCP, 80, PolicyEntry::L7);
        let packet = tcp(&at(cast.remote, 5000), &at(cast.pod, 80), Tcp::Syn);
        assert_eq!(bench.send_marked(TO_POD, &packet, mark::PROXY), Passed);
    });
}

#[test]
fn a_servers_segment_of_a_connection_that_the_proxy_lost_does_not_leave() {
    for_each_family(PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_INGRESS, identity::ANY, TCP, 80, PolicyEntry::L7);
        for kind in [Tcp::SynAck, Tcp::Ack, Tcp::Fin, Tcp::Rst] {
            let packet = tcp(&at(cast.pod, 80), &at(cast.remote, 5000), kind);
            assert_eq!(bench.send(FROM_POD, &packet), Dropped(Reason::OrphanReply));
        }
        // Its own connections are not for the proxy.
        let (own, remote) = (at(cast.pod, 4000), at(cast.remote, 443));
        assert_eq!(bench.send(FROM_POD, &tcp(&own, &remote, Tcp::Syn)), Passed);
        assert_eq!(bench.send(FROM_POD, &tcp(&own, &remote, Tcp::Ack)), Passed);
    });
}

#[test]
fn hbone_to_a_pod_goes_to_the_hbone_listener_from_everywhere() {
    for_each_family(0, 0, |bench, cast| {
        let remote = tcp(&at(cast.remote, 5000), &at(cast.pod, HBONE_PORT), Tcp::Syn);
        goes_to(bench, FROM_NETWORK, &remote, 0, listener::HBONE4);
    });
    for_each_family(0, 0, |bench, cast| {
        let near = tcp(&at(cast.pod, 5000), &at(cast.neighbour, HBONE_PORT), Tcp::Syn);
        goes_to(bench, FROM_POD, &near, 0, listener::HBONE4);
    });
}

#[test]
fn connections_from_the_network_to_l7_rules_go_to_the_ingress_listener() {
    for_each_family(BOTH | PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_INGRESS, REMOTE, TCP, 80, PolicyEntry::L7);
        bench.rule(2, POD_INGRESS, REMOTE, TCP, 81, PolicyEntry::ALLOW);
        // Left to the pod's own hook, which lets the first pass and drops the second.
        for port in [81, 82] {
            let packet = tcp(&at(cast.remote, 5000), &at(cast.pod, port), Tcp::Syn);
            assert_eq!(bench.send(FROM_NETWORK, &packet), Passed);
        }
        let packet = tcp(&at(cast.remote, 5000), &at(cast.pod, 80), Tcp::Syn);
        goes_to(bench, FROM_NETWORK, &packet, 0, listener::INGRESS4);
    });
}
