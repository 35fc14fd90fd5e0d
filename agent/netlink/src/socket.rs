//! One request at a time: send, then read until the acknowledgement or the end of the dump.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Error;

/// The kernel answers from the same system call; longer than this means that it lost the answer.
const ANSWER_TIMEOUT_S: i64 = 10;
/// The kernel fills at most 32 KiB of a dump at a time.
const BUFFER: usize = 64 * 1024;
const DUMP_ATTEMPTS: usize = 8;

/// A connection to the rtnetlink of one network namespace.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a connection to the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let socket =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_S))?;
            Ok(socket)
        };
        let socket = open().map_err(|errno: nix::Error| Error::Open(errno.into()))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Changes something, or asks for one object; `action` completes 'cannot …' in the error.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(message, flags | NLM_F_REQUEST | NLM_F_ACK, &action).map(|(answers, _)| answers)
    }

    /// Lists all objects of a kind, again when they changed meanwhile.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, interrupted) = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, &action)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(Error::Refused { action: action(), cause: io::ErrorKind::Interrupted.into() })
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &impl Fn() -> String,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Error> {
        let refused = |cause: io::Error| Error::Refused { action: action(), cause };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|errno| refused(errno.into()))?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(refused(errno.into())),
            };
            let mut rest = &self.buffer[..length];
            while !rest.is_empty() {
                let malformed = |reason: String| Error::Answer { action: action(), reason };
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| malformed(error.to_string()))?;
                let size = (answer.header.length as usize).next_multiple_of(4);
                if size == 0 {
                    return Err(malformed("a message of length 0".to_owned()));
                }
                rest = rest.get(size..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                    _ => {}
                }
            }
        }
    }
}
