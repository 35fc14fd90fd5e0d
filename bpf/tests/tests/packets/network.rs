//! The node's own devices: who may enter, and the guard against plain text.
use crate::{at, for_each_family};
use weft_bpf_abi::{
    event::Reason,
    mark,
    net::{Endpoint, HBONE_PORT, IpInfo},
    program::{FROM_NETWORK, FROM_TUNNEL, TO_NETWORK},
};
use weft_bpf_tests::{
    bench::Outcome::{Dropped, Passed},
    packets::{Tcp, arp, echo, tcp, udp},
};

#[test]
fn nobody_enters_with_an_address_of_this_node_or_its_pods() {
    for_each_family(0, 0, |bench, cast| {
        for program in [FROM_NETWORK, FROM_TUNNEL] {
            for from in [cast.node, cast.neighbour, cast.pod] {
                let packet = udp(&at(from, 5000), &at(cast.pod, 80));
                assert_eq!(bench.send(program, &packet), Dropped(Reason::SpoofedSource), "{from}");
            }
            for from in [cast.remote, cast.world] {
                assert_eq!(bench.send(program, &udp(&at(from, 5000), &at(cast.pod, 80))), Passed, "{from}");
            }
        }
    });
}

#[test]
fn what_is_due_for_encryption_does_not_leave_in_plain() {
    for_each_family(0, 0, |bench, cast| {
        bench.identity(cast.remote, 300, IpInfo::ENCRYPT);
        let packets = [
            tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn),
            udp(&at(cast.pod, 4000), &at(cast.remote, 80)),
            echo(cast.pod, cast.remote, 1, true),
        ];
        for packet in packets {
            assert_eq!(bench.send(TO_NETWORK, &packet), Dropped(Reason::Unencrypted));
            assert_eq!(bench.send_marked(TO_NETWORK, &packet, mark::PROXY), Dropped(Reason::Unencrypted));
            assert_eq!(bench.send_marked(TO_NETWORK, &packet, mark::WIREGUARD), Passed);
        }
        assert_eq!(bench.send(TO_NETWORK, &udp(&at(cast.pod, 4000), &at(cast.world, 80))), Passed);
        assert_eq!(bench.send(TO_NETWORK, &arp()), Passed);
    });
}

#[test]
fn what_should_have_been_encrypted_does_not_enter_in_plain() {
    for_each_family(0, 0, |bench, cast| {
        bench.identity(cast.remote, 300, IpInfo::ENCRYPT);
        let packet = udp(&at(cast.remote, 5000), &at(cast.pod, 80));
        assert_eq!(bench.send(FROM_NETWORK, &packet), Dropped(Reason::Unencrypted));
        assert_eq!(bench.send(FROM_TUNNEL, &packet), Passed);
    });
}

#[test]
fn traffic_of_others_is_left_alone() {
    for_each_family(0, 0, |bench, cast| {
        bench.config(0);
        for program in [FROM_NETWORK, FROM_TUNNEL] {
            assert_eq!(bench.send(program, &arp()), Passed);
            assert_eq!(bench.send(program, &tcp(&at(cast.world, 5000), &at(cast.node, 22), Tcp::Syn)), Passed);
            assert_eq!(bench.send(program, &tcp(&at(cast.world, 5000), &at(cast.node, HBONE_PORT), Tcp::Syn)), Passed);
        }
    });
}

#[test]
fn until_the_agent_is_ready_no_connection_from_the_network_is_handed_over() {
    for_each_family(Endpoint::PROXIED, 0, |bench, cast| {
        bench.config(0);
        let packet = tcp(&at(cast.remote, 5000), &at(cast.pod, HBONE_PORT), Tcp::Syn);
        assert_eq!(bench.send(FROM_NETWORK, &packet), Dropped(Reason::NotReady));
    });
}
