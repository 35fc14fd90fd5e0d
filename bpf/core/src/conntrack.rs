//! What an entry of the connection table is worth, and how a packet changes it.
use weft_bpf_abi::{
    net::TCP,
    policy::{Conn, lifetime},
};

const SECOND_NS: u64 = 1_000_000_000;

/// TCP flags, as in the header's byte 13.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    /// Opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn is_opening(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN
    }

    #[inline(always)]
    pub const fn is_closing(flags: u8) -> bool {
        flags & (FIN | RST) != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Idle for longer than its life: as if it were not there.
    Expired,
    /// Made under older rules: judge again.
    Stale,
    Live,
}

#[inline(always)]
pub fn state(conn: &Conn, proto: u8, now_ns: u64, epoch: u32) -> State {
    let life = match proto {
        TCP if conn.flags & Conn::CLOSING != 0 => lifetime::TCP_CLOSING,
        TCP => lifetime::TCP,
        _ => lifetime::OTHER,
    };
    if now_ns.saturating_sub(conn.last_ns) >= life * SECOND_NS {
        State::Expired
    } else if conn.epoch != epoch {
        State::Stale
    } else {
        State::Live
    }
}

/// A connection as its first packet leaves it. `tcp_flags` is 0 for other protocols.
#[inline(always)]
pub fn opened(tcp_flags: u8, now_ns: u64, epoch: u32) -> Conn {
    Conn { last_ns: now_ns, epoch, flags: if tcp::is_closing(tcp_flags) { Conn::CLOSING } else { 0 } }
}

/// The entry after a packet; none where it need not be written. Times are kept to the second, so that a busy
/// connection does not move one cache line between CPUs with every packet.
#[inline(always)]
pub fn touched(conn: &Conn, tcp_flags: u8, now_ns: u64, epoch: u32) -> Option<Conn> {
    let flags = if tcp::is_closing(tcp_flags) { conn.flags | Conn::CLOSING } else { conn.flags };
    let idle_ns = now_ns.saturating_sub(conn.last_ns);
    let same = flags == conn.flags && epoch == conn.epoch && idle_ns < SECOND_NS;
    (!same).then_some(Conn { last_ns: now_ns, epoch, flags })
}

#[cfg(test)]
mod tests;
