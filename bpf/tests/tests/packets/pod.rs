//! Policy, spoofing and connection tracking at a pod's interface.
use crate::{BOTH, NEIGHBOUR, OTHER_DEVICE, POD, POD_EGRESS, POD_INGRESS, REMOTE, at, for_each_family};
use weft_bpf_abi::{
    event::{Event, Reason},
    net::{Endpoint, NodeConfig, Port, TCP, UDP, identity},
    policy::{EGRESS, INGRESS, PolicyEntry, lifetime},
    program::{FROM_POD, TO_POD},
};
use weft_bpf_tests::{
    bench::{
        Outcome::{Dropped, Passed, Turned},
        addr,
    },
    packets::{Tcp, arp, echo, neighbour_solicitation, tcp, too_big, udp},
};

const DENIED: weft_bpf_tests::bench::Outcome = Dropped(Reason::PolicyDenied);

#[test]
fn a_pod_sends_from_its_own_address_only() {
    for_each_family(0, 0, |bench, cast| {
        let to = at(cast.remote, 80);
        assert_eq!(bench.send(FROM_POD, &tcp(&at(cast.pod, 4000), &to, Tcp::Syn)), Passed);
        // An address of nobody here, of another pod, and of the node.
        for from in [cast.world, cast.neighbour, cast.node] {
            let spoofed = Dropped(Reason::SpoofedSource);
            assert_eq!(bench.send(FROM_POD, &tcp(&at(from, 4000), &to, Tcp::Syn)), spoofed, "{from}");
            assert_eq!(bench.send(FROM_POD, &udp(&at(from, 4000), &to)), spoofed, "{from}");
        }
    });
}

#[test]
fn until_the_agent_is_ready_pods_may_only_find_their_neighbours() {
    for_each_family(0, 0, |bench, cast| {
        bench.config(0);
        let (pod, remote) = (at(cast.pod, 4000), at(cast.remote, 80));
        assert_eq!(bench.send(FROM_POD, &tcp(&pod, &remote, Tcp::Syn)), Dropped(Reason::NotReady));
        assert_eq!(bench.send(TO_POD, &tcp(&remote, &pod, Tcp::Syn)), Dropped(Reason::NotReady));
        let mut local = vec![arp()];
        if cast.pod.contains(':') {
            local.push(neighbour_solicitation("fe80::1", "ff02::1:ff00:1", 255));
            local.push(neighbour_solicitation("::", "ff02::1:ff00:1", 255));
            let routed = neighbour_solicitation(cast.pod, cast.remote, 64);
            assert_eq!(bench.send(FROM_POD, &routed), Dropped(Reason::NotReady));
        }
        for packet in local {
            assert_eq!(bench.send(FROM_POD, &packet), Passed);
            assert_eq!(bench.send(TO_POD, &packet), Passed);
        }
        bench.config(NodeConfig::READY);
        assert_eq!(bench.send(FROM_POD, &tcp(&pod, &remote, Tcp::Syn)), Passed);
    });
}

#[test]
fn an_address_without_an_endpoint_receives_nothing() {
    for_each_family(0, 0, |bench, cast| {
        let from = at(cast.pod, 4000);
        for unknown in [cast.world, cast.neighbour] {
            assert_eq!(bench.send(TO_POD, &udp(&from, &at(unknown, 80))), Dropped(Reason::NotReady));
        }
    });
}

#[test]
fn without_enforcement_everything_passes_but_what_is_denied() {
    for_each_family(0, 0, |bench, cast| {
        bench.rule(7, POD_EGRESS, REMOTE, TCP, 23, PolicyEntry::DENY);
        bench.rule(8, POD_INGRESS, identity::WORLD, 0, 0, PolicyEntry::DENY);
        let pod = at(cast.pod, 4000);
        assert_eq!(bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 22), Tcp::Syn)), Passed);
        assert_eq!(bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 23), Tcp::Syn)), DENIED);
        assert_eq!(bench.send(FROM_POD, &udp(&pod, &at(cast.remote, 23))), Passed);
        assert_eq!(bench.send(TO_POD, &udp(&at(cast.remote, 9), &pod)), Passed);
        assert_eq!(bench.send(TO_POD, &udp(&at(cast.world, 9), &pod)), DENIED);
    });
}

#[test]
fn enforced_directions_let_pass_what_one_of_the_four_entries_allows() {
    const ALLOW: u32 = PolicyEntry::ALLOW;
    // Identity, protocol and port of the entry; then which of the four packets below pass.
    let cases = [
        ((REMOTE, TCP, 80), [true, false, false, false]),
        ((REMOTE, 0, 80), [true, false, true, false]),
        ((identity::ANY, TCP, 80), [true, false, false, true]),
        ((identity::ANY, 0, 80), [true, false, true, true]),
        ((REMOTE, TCP, 0), [true, true, false, false]),
        ((identity::ANY, 0, 0), [true, true, true, true]),
        ((identity::WORLD, 0, 0), [false, false, false, true]),
        ((NEIGHBOUR, 0, 0), [false, false, false, false]),
    ];
    for ((peer, proto, port), expected) in cases {
        for_each_family(BOTH, 0, |bench, cast| {
            bench.rule(1, POD_EGRESS, peer, proto, port, ALLOW);
            bench.rule(2, POD_INGRESS, peer, proto, port, ALLOW);
            let pod = cast.pod;
            let packets = |from: &dyn Fn(&str, u16) -> (String, String)| {
                let make = |peer: &str, port: u16, is_tcp: bool| {
                    let (from, to) = from(peer, port);
                    if is_tcp { tcp(&from, &to, Tcp::Syn) } else { udp(&from, &to) }
                };
                let (remote, world) = (cast.remote, cast.world);
                [make(remote, 80, true), make(remote, 81, true), make(remote, 80, false), make(world, 80, true)]
            };
            let out = packets(&|peer, port| (at(pod, 4000), at(peer, port)));
            let into = packets(&|peer, port| (at(peer, 5000), at(pod, port)));
            for (number, passes) in expected.into_iter().enumerate() {
                let verdict = if passes { Passed } else { DENIED };
                let about = format!("entry {peer} {proto} {port}, packet {number}");
                assert_eq!(bench.send(FROM_POD, &out[number]), verdict, "egress, {about}");
                assert_eq!(bench.send(TO_POD, &into[number]), verdict, "ingress, {about}");
            }
        });
    }
}

#[test]
fn a_deny_in_any_entry_wins() {
    for (peer, proto) in [(REMOTE, TCP), (REMOTE, 0), (identity::ANY, TCP), (identity::ANY, 0)] {
        for_each_family(BOTH, 0, |bench, cast| {
            for (allowed_peer, allowed_proto) in [(REMOTE, TCP), (REMOTE, 0), (identity::ANY, TCP), (identity::ANY, 0)]
            {
                bench.rule(1, POD_EGRESS, allowed_peer, allowed_proto, 80, PolicyEntry::ALLOW);
            }
            let packet = tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn);
            assert_eq!(bench.send(FROM_POD, &packet), Passed);
            bench.rule(2, POD_EGRESS, peer, proto, 80, PolicyEntry::DENY);
            assert_eq!(bench.send(FROM_POD, &packet), DENIED);
        });
    }
}

#[test]
fn answers_pass_and_new_connections_the_same_way_do_not() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, TCP, 80, PolicyEntry::ALLOW);
        bench.rule(2, POD_EGRESS, REMOTE, UDP, 53, PolicyEntry::ALLOW);
        bench.rule(3, POD_INGRESS, REMOTE, TCP, 8080, PolicyEntry::ALLOW);
        let (opener, server) = (at(cast.pod, 4000), at(cast.remote, 80));
        assert_eq!(bench.send(TO_POD, &tcp(&server, &opener, Tcp::SynAck)), DENIED);
        assert_eq!(bench.send(FROM_POD, &tcp(&opener, &server, Tcp::Syn)), Passed);
        assert_eq!(bench.send(TO_POD, &tcp(&server, &opener, Tcp::SynAck)), Passed);
        assert_eq!(bench.send(TO_POD, &tcp(&server, &opener, Tcp::Ack)), Passed);
        assert_eq!(bench.send(TO_POD, &tcp(&server, &opener, Tcp::Syn)), DENIED, "a SYN is no answer");
        assert_eq!(bench.send(TO_POD, &tcp(&at(cast.remote, 81), &opener, Tcp::Ack)), DENIED);

        let (asker, dns) = (at(cast.pod, 4001), at(cast.remote, 53));
        assert_eq!(bench.send(TO_POD, &udp(&dns, &asker)), DENIED);
        assert_eq!(bench.send(FROM_POD, &udp(&asker, &dns)), Passed);
        assert_eq!(bench.send(TO_POD, &udp(&dns, &asker)), Passed);

        let (client, own) = (at(cast.remote, 5000), at(cast.pod, 8080));
        assert_eq!(bench.send(FROM_POD, &tcp(&own, &client, Tcp::SynAck)), DENIED);
        assert_eq!(bench.send(TO_POD, &tcp(&client, &own, Tcp::Syn)), Passed);
        assert_eq!(bench.send(FROM_POD, &tcp(&own, &client, Tcp::SynAck)), Passed);
        assert_eq!(bench.send(FROM_POD, &tcp(&own, &client, Tcp::Syn)), DENIED);
    });
}

#[test]
fn echo_answers_pass_by_their_identifier() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, 0, 0, PolicyEntry::ALLOW);
        assert_eq!(bench.send(TO_POD, &echo(cast.remote, cast.pod, 7, false)), DENIED);
        assert_eq!(bench.send(FROM_POD, &echo(cast.pod, cast.remote, 7, true)), Passed);
        assert_eq!(bench.send(TO_POD, &echo(cast.remote, cast.pod, 7, false)), Passed);
        assert_eq!(bench.send(TO_POD, &echo(cast.remote, cast.pod, 8, false)), DENIED);
        assert_eq!(bench.send(TO_POD, &echo(cast.remote, cast.pod, 7, true)), DENIED);
    });
}

#[test]
fn routers_may_tell_that_a_connections_packets_are_too_big() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, TCP, 80, PolicyEntry::ALLOW);
        bench.rule(2, POD_INGRESS, REMOTE, TCP, 8080, PolicyEntry::ALLOW);
        let sent = tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn);
        assert_eq!(bench.send(TO_POD, &too_big(cast.world, &sent)), DENIED);
        bench.send(FROM_POD, &sent);
        assert_eq!(bench.send(TO_POD, &too_big(cast.world, &sent)), Passed);
        let other = tcp(&at(cast.pod, 4001), &at(cast.remote, 80), Tcp::Syn);
        assert_eq!(bench.send(TO_POD, &too_big(cast.world, &other)), DENIED);
        // About the pod's answers to a connection that came in.
        bench.send(TO_POD, &tcp(&at(cast.remote, 5000), &at(cast.pod, 8080), Tcp::Syn));
        let answer = tcp(&at(cast.pod, 8080), &at(cast.remote, 5000), Tcp::Ack);
        assert_eq!(bench.send(TO_POD, &too_big(cast.world, &answer)), Passed);
    });
}

#[test]
fn changed_rules_apply_to_connections_that_are_open() {
    for_each_family(BOTH, 0, |bench, cast| {
        let (client, server) = (at(cast.remote, 5000), at(cast.pod, 80));
        let (asks, answers) = (tcp(&client, &server, Tcp::Ack), tcp(&server, &client, Tcp::Ack));
        bench.rule(1, POD_INGRESS, REMOTE, TCP, 80, PolicyEntry::ALLOW);
        assert_eq!(bench.send(TO_POD, &tcp(&client, &server, Tcp::Syn)), Passed);
        // Still allowed: neither side notices.
        bench.epoch(1);
        assert_eq!(bench.send(FROM_POD, &answers), Passed);
        assert_eq!(bench.send(TO_POD, &asks), Passed);
        // No longer: both sides end, whoever speaks first.
        bench.rule(2, POD_INGRESS, REMOTE, TCP, 80, PolicyEntry::DENY);
        assert_eq!(bench.send(FROM_POD, &answers), Passed, "until the agent says so");
        bench.epoch(2);
        assert_eq!(bench.send(FROM_POD, &answers), DENIED);
        assert_eq!(bench.send(TO_POD, &asks), DENIED);
    });
}

#[test]
fn a_later_packet_never_opens_a_connection() {
    // A server whose client is denied sends by itself: were that an opening, the client's packets would be answers.
    for_each_family(Endpoint::ENFORCE_INGRESS, 0, |bench, cast| {
        let (client, server) = (at(cast.remote, 5000), at(cast.pod, 80));
        assert_eq!(bench.send(FROM_POD, &tcp(&server, &client, Tcp::Ack)), Passed);
        assert_eq!(bench.send(TO_POD, &tcp(&client, &server, Tcp::Ack)), DENIED);
        assert_eq!(bench.connections().len(), 0);
    });
}

#[test]
fn connections_end_when_idle_and_sooner_when_closed() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, 0, 0, PolicyEntry::ALLOW);
        let (pod, remote) = (at(cast.pod, 4000), at(cast.remote, 80));
        let answer = tcp(&remote, &pod, Tcp::Ack);
        bench.send(FROM_POD, &tcp(&pod, &remote, Tcp::Syn));
        bench.age_connections(lifetime::TCP - 60);
        assert_eq!(bench.send(TO_POD, &answer), Passed);
        bench.age_connections(lifetime::TCP_CLOSING);
        assert_eq!(bench.send(TO_POD, &answer), Passed, "still open");
        assert_eq!(bench.send(TO_POD, &tcp(&remote, &pod, Tcp::Fin)), Passed);
        bench.age_connections(lifetime::TCP_CLOSING);
        assert_eq!(bench.send(TO_POD, &answer), DENIED);

        bench.send(FROM_POD, &udp(&pod, &remote));
        bench.age_connections(lifetime::OTHER);
        assert_eq!(bench.send(TO_POD, &udp(&remote, &pod)), DENIED);
    });
}

#[test]
fn the_node_reaches_its_pods_whatever_the_rules_say() {
    for_each_family(BOTH | Endpoint::PROXIED, 0, |bench, cast| {
        bench.rule(1, POD_INGRESS, identity::ANY, TCP, 80, PolicyEntry::L7);
        bench.rule(2, POD_INGRESS, identity::ANY, TCP, 81, PolicyEntry::AUTH);
        for port in [80, 81, 82] {
            let (node, pod) = (at(cast.node, 5000), at(cast.pod, port));
            assert_eq!(bench.send(TO_POD, &tcp(&node, &pod, Tcp::Syn)), Passed);
            assert_eq!(bench.send(FROM_POD, &tcp(&pod, &node, Tcp::SynAck)), Passed);
        }
        let world = at(cast.world, 5000);
        assert_eq!(bench.send(TO_POD, &tcp(&world, &at(cast.pod, 80), Tcp::Syn)), Turned);
        assert_eq!(bench.send(TO_POD, &tcp(&world, &at(cast.pod, 82), Tcp::Syn)), DENIED);
    });
}

#[test]
fn a_pod_may_be_deleted_and_its_address_given_to_another_device() {
    for_each_family(0, 0, |bench, cast| {
        let packet = udp(&at(cast.pod, 4000), &at(cast.remote, 80));
        assert_eq!(bench.send(FROM_POD, &packet), Passed);
        bench.pod_on(cast.pod, POD, 0, OTHER_DEVICE);
        assert_eq!(bench.send(FROM_POD, &packet), Dropped(Reason::SpoofedSource));
    });
}

#[test]
fn judgements_are_told_with_identities_and_the_deciding_rule() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(41, POD_EGRESS, REMOTE, TCP, 80, PolicyEntry::ALLOW);
        bench.rule(42, POD_EGRESS, REMOTE, TCP, 81, PolicyEntry::DENY);
        let event = |direction, from: (&str, u16, u32), to: (&str, u16, u32), verdict, reason: Reason, rule| Event {
            at_ns: 0,
            from: addr(from.0),
            to: addr(to.0),
            from_port: Port::new(from.1),
            to_port: Port::new(to.1),
            proto: TCP,
            direction,
            verdict,
            reserved: 0,
            reason: reason as u32,
            from_identity: from.2,
            to_identity: to.2,
            rule,
        };
        let pod = at(cast.pod, 4000);
        bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 80), Tcp::Syn));
        bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 80), Tcp::Ack));
        bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 81), Tcp::Syn));
        bench.send(TO_POD, &tcp(&at(cast.world, 9), &pod, Tcp::Syn));
        let own = (cast.pod, 4000, POD);
        assert_eq!(
            bench.events(),
            [
                event(EGRESS, own, (cast.remote, 80, REMOTE), Event::FORWARDED, Reason::Forwarded, 41),
                event(EGRESS, own, (cast.remote, 81, REMOTE), Event::DROPPED, Reason::PolicyDenied, 42),
                event(INGRESS, (cast.world, 9, identity::WORLD), own, Event::DROPPED, Reason::PolicyDenied, 0),
            ]
        );
        // Untraced, only drops are told.
        bench.config(NodeConfig::READY);
        bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 80), Tcp::Syn));
        assert_eq!(bench.events(), []);
        bench.send(FROM_POD, &tcp(&pod, &at(cast.remote, 81), Tcp::Syn));
        assert_eq!(bench.events().len(), 1);
    });
}
