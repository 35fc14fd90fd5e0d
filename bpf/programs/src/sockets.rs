//! Socket references: taken from the kernel, given back on every path by `Drop`.
use crate::{maps::LISTENERS, packet::Packet};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple},
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use core::{mem::zeroed, ptr::NonNull};

/// Without this the kernel drops a packet that carries another machine's MAC address.
const PACKET_HOST: u32 = 0;

pub struct Socket(NonNull<bpf_sock>);

impl Socket {
    /// The socket in this node that has the connection: established, half open, closing or in TIME_WAIT.
    #[inline(always)]
    pub fn of_connection(ctx: &TcContext, packet: &Packet) -> Option<Self> {
        // SAFETY: a union of integers; all zeroes is valid.
        let mut tuple: bpf_sock_tuple = unsafe { zeroed() };
        let size = if packet.is_v6 {
            // SAFETY: the variant that its size, passed below, selects.
            let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
            (v6.saddr, v6.sport) = (packet.from.words_be(), packet.from_port.be());
            (v6.daddr, v6.dport) = (packet.to.words_be(), packet.to_port.be());
            size_of_val(v6) as u32
        } else {
            // SAFETY: as above.
            let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
            (v4.saddr, v4.sport) = (packet.from.v4_be(), packet.from_port.be());
            (v4.daddr, v4.dport) = (packet.to.v4_be(), packet.to_port.be());
            size_of_val(v4) as u32
        };
        // SAFETY: the tuple is at least `size` bytes long; the reference is owned by `Socket`.
        let found = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &mut tuple, size, BPF_F_CURRENT_NETNS as u64, 0) };
        let socket = Self(NonNull::new(found)?);
        // A process of the host that listens on the same port has no say about a pod's traffic.
        (socket.state() != BPF_TCP_LISTEN).then_some(socket)
    }

    /// The proxy's listener in a slot of `LISTENERS`.
    #[inline(always)]
    pub fn of_listener(slot: u32) -> Option<Self> {
        // SAFETY: a look-up in a socket map returns a referenced socket; the reference is owned by `Socket`.
        let found = unsafe { bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const slot).cast()) };
        NonNull::new(found.cast()).map(Self)
    }

    /// The packet will be delivered to this socket, whatever its addresses say, once routing calls it local.
    ///
    /// # Errors
    /// The kernel's, negative.
    #[inline(always)]
    pub fn assign(self, ctx: &TcContext) -> Result<(), i64> {
        // SAFETY: both pointers are live.
        match unsafe { bpf_sk_assign(ctx.as_ptr(), self.0.as_ptr().cast(), 0) } {
            0 => {
                // A packet that was turned round still has the pod's MAC address.
                let _ = ctx.change_type(PACKET_HOST);
                Ok(())
            }
            errno => Err(errno),
        }
    }

    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: the reference keeps the socket alive.
        unsafe { (*self.0.as_ptr()).state }
    }
}

impl Drop for Socket {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { bpf_sk_release(self.0.as_ptr().cast()) };
    }
}
