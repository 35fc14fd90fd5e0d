use super::*;
use proptest::prelude::*;
use weft_bpf_abi::net::UDP;

#[test]
fn lives_are_by_protocol_and_by_whether_the_connection_closes() {
    let cases = [
        (TCP, 0, lifetime::TCP),
        (TCP, Conn::CLOSING, lifetime::TCP_CLOSING),
        (UDP, 0, lifetime::OTHER),
        (58, 0, lifetime::OTHER),
    ];
    for (proto, flags, life) in cases {
        let conn = Conn { last_ns: 5, epoch: 1, flags };
        let end = 5 + life * SECOND_NS;
        assert_eq!(state(&conn, proto, end - 1, 1), State::Live);
        assert_eq!(state(&conn, proto, end - 1, 2), State::Stale);
        assert_eq!(state(&conn, proto, end, 1), State::Expired);
        assert_eq!(state(&conn, proto, end, 2), State::Expired);
    }
}

#[test]
fn only_a_syn_without_ack_opens() {
    assert!(tcp::is_opening(tcp::SYN));
    assert!(tcp::is_opening(tcp::SYN | 0xc0), "with ECN");
    for flags in [tcp::SYN | tcp::ACK, tcp::ACK, tcp::RST, 0] {
        assert!(!tcp::is_opening(flags), "{flags:#x}");
    }
}

#[test]
fn a_busy_connection_is_written_once_a_second() {
    let conn = opened(tcp::SYN, 0, 1);
    assert_eq!(touched(&conn, tcp::ACK, SECOND_NS - 1, 1), None);
    assert_eq!(touched(&conn, tcp::ACK, SECOND_NS, 1), Some(Conn { last_ns: SECOND_NS, epoch: 1, flags: 0 }));
}

proptest! {
    /// Packets drive an entry; a plain account of them says what it must be.
    #[test]
    fn an_entry_follows_its_packets(
        packets in prop::collection::vec((0_u64..90 * SECOND_NS, prop::sample::select(vec![
            tcp::ACK, tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST,
        ])), 0..30),
    ) {
        let mut conn = opened(tcp::SYN, 0, 1);
        let (mut now, mut last, mut closing) = (0, 0, false);
        for (wait, flags) in packets {
            now += wait;
            let life = if closing { lifetime::TCP_CLOSING } else { lifetime::TCP } * SECOND_NS;
            let alive = state(&conn, TCP, now, 1) == State::Live;
            // Times are kept to the second.
            prop_assert!(!alive || now - last < life);
            prop_assert!(alive || now - last + SECOND_NS >= life);
            if !alive {
                return Ok(());
            }
            (last, closing) = (now, closing || tcp::is_closing(flags));
            conn = touched(&conn, flags, now, 1).unwrap_or(conn);
            prop_assert_eq!(conn.flags == Conn::CLOSING, closing);
        }
    }
}
