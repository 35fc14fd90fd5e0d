//! Packets of unusual shape: none is a way around the rules.
use crate::{BOTH, CASTS, POD_EGRESS, REMOTE, at, for_each_family};
use weft_bpf_abi::{
    event::Reason,
    net::{Endpoint, TCP, UDP},
    policy::PolicyEntry,
    program::{FROM_NETWORK, FROM_POD, TO_POD},
};
use weft_bpf_tests::{
    bench::{
        Bench,
        Outcome::{Dropped, Passed},
    },
    packets::{Tcp, fragment, tcp, udp, with_extensions, with_options},
};

const FRAGMENT: weft_bpf_tests::bench::Outcome = Dropped(Reason::Fragment);
const DENIED: weft_bpf_tests::bench::Outcome = Dropped(Reason::PolicyDenied);
const TOO_SHORT: weft_bpf_tests::bench::Outcome = Dropped(Reason::TooShort);

#[test]
fn tcp_in_fragments_does_not_pass_proxied_endpoints() {
    for_each_family(Endpoint::PROXIED, 0, |bench, cast| {
        for is_first in [true, false] {
            let (pod, remote) = (at(cast.pod, 4000), at(cast.remote, 80));
            assert_eq!(bench.send(FROM_POD, &fragment(&pod, &remote, TCP, is_first)), FRAGMENT);
            assert_eq!(bench.send(TO_POD, &fragment(&remote, &pod, TCP, is_first)), FRAGMENT);
            assert_eq!(bench.send(FROM_NETWORK, &fragment(&remote, &pod, TCP, is_first)), FRAGMENT);
            assert_eq!(bench.send(FROM_POD, &fragment(&pod, &remote, UDP, is_first)), Passed);
        }
    });
}

#[test]
fn later_fragments_pass_only_where_nothing_is_enforced() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, UDP, 53, PolicyEntry::ALLOW);
        let (pod, dns) = (at(cast.pod, 4000), at(cast.remote, 53));
        assert_eq!(bench.send(FROM_POD, &fragment(&pod, &dns, UDP, true)), Passed);
        assert_eq!(bench.send(FROM_POD, &fragment(&pod, &at(cast.remote, 54), UDP, true)), DENIED);
        assert_eq!(bench.send(FROM_POD, &fragment(&pod, &dns, UDP, false)), FRAGMENT);
        assert_eq!(bench.send(TO_POD, &fragment(&dns, &pod, UDP, false)), FRAGMENT);
    });
    for_each_family(0, 0, |bench, cast| {
        let packet = fragment(&at(cast.pod, 4000), &at(cast.remote, 53), UDP, false);
        assert_eq!(bench.send(FROM_POD, &packet), Passed);
    });
}

#[test]
fn ports_are_found_behind_options_and_extension_headers() {
    for_each_family(BOTH, 0, |bench, cast| {
        bench.rule(1, POD_EGRESS, REMOTE, TCP, 80, PolicyEntry::ALLOW);
        let allowed = tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn);
        let denied = tcp(&at(cast.pod, 4000), &at(cast.remote, 81), Tcp::Syn);
        if cast.pod.contains(':') {
            for count in 1..=4 {
                assert_eq!(bench.send(FROM_POD, &with_extensions(&allowed, count)), Passed);
                assert_eq!(bench.send(FROM_POD, &with_extensions(&denied, count)), DENIED);
            }
            assert_eq!(bench.send(FROM_POD, &with_extensions(&allowed, 6)), TOO_SHORT);
        } else {
            assert_eq!(bench.send(FROM_POD, &with_options(&allowed)), Passed);
            assert_eq!(bench.send(FROM_POD, &with_options(&denied)), DENIED);
        }
    });
}

#[test]
fn a_packet_that_ends_within_its_headers_is_dropped() {
    for_each_family(0, 0, |bench, cast| {
        let packet = tcp(&at(cast.pod, 4000), &at(cast.remote, 80), Tcp::Syn);
        let headers = if cast.pod.contains(':') { 14 + 40 } else { 14 + 20 };
        for length in [headers, headers + 3, headers + 13] {
            assert_eq!(bench.send(FROM_POD, &packet[..length]), TOO_SHORT, "{length}");
        }
        let packet = udp(&at(cast.pod, 4000), &at(cast.remote, 80));
        assert_eq!(bench.send(FROM_POD, &packet[..headers + 2]), TOO_SHORT);
    });
}

#[test]
fn an_ipv6_packet_with_a_mapped_source_is_not_the_ipv4_pod() {
    let mut bench = Bench::new();
    bench.pod(CASTS[0].pod, 256, 0);
    bench.pod(CASTS[1].pod, 256, 0);
    // Made for 2001:db8::1, since packet builders take mapped addresses for IPv4.
    let mut packet = udp("[2001:db8::1]:4000", &at(CASTS[1].remote, 80));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 1, 2];
    packet[14 + 8..14 + 24].copy_from_slice(&mapped);
    assert_eq!(bench.send(FROM_POD, &packet), TOO_SHORT);
}

#[test]
fn other_protocols_than_ip_do_not_leave_a_pod() {
    let mut bench = Bench::new();
    let mut packet = udp("10.0.1.2:1", "10.0.2.2:2");
    packet[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(bench.send(FROM_POD, &packet), DENIED);
    assert_eq!(bench.send(TO_POD, &packet), DENIED);
}
