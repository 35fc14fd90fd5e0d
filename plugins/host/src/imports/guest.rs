//! Reading and writing the guest's memory. Every pointer and length comes from the plugin and is checked.
use crate::{abi::Status, state::HostState};
use wasmtime::{Caller, Memory};

/// What host functions return to the guest.
pub type Answer = Result<(), Status>;

/// The host's side of a call from the guest.
pub struct Guest<'a> {
    pub caller: Caller<'a, HostState>,
}

/// A span of guest memory, not yet checked.
#[derive(Clone, Copy)]
pub struct Span {
    pub start: u32,
    pub length: u32,
}

pub fn span(start: u32, length: u32) -> Span {
    Span { start, length }
}

impl Span {
    pub fn of(self, memory: &[u8]) -> Result<&[u8], Status> {
        let start = usize_of(self.start);
        // Both are below 4 GiB: no overflow in 64 bits.
        memory.get(start..start + usize_of(self.length)).ok_or(Status::InvalidMemoryAccess)
    }

    fn of_mut(self, memory: &mut [u8]) -> Result<&mut [u8], Status> {
        let start = usize_of(self.start);
        memory.get_mut(start..start + usize_of(self.length)).ok_or(Status::InvalidMemoryAccess)
    }
}

/// Wasm's 32-bit numbers fit into every address size that Weft runs on.
pub fn usize_of(number: u32) -> usize {
    number as usize
}

/// Lengths in this host are bounded far below 4 GiB.
pub fn u32_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub fn status(answer: Answer) -> u32 {
    answer.map_or_else(|status| status as u32, |()| Status::Ok as u32)
}

impl<'a> Guest<'a> {
    pub fn new(caller: Caller<'a, HostState>) -> Self {
        Self { caller }
    }

    pub fn state(&mut self) -> &mut HostState {
        self.caller.data_mut()
    }

    fn memory(&mut self) -> Result<Memory, Status> {
        if let Some(memory) = self.caller.data().memory {
            return Ok(memory);
        }
        // Before the instance is made known: its start function runs.
        self.caller.get_export("memory").and_then(wasmtime::Extern::into_memory).ok_or(Status::InvalidMemoryAccess)
    }

    /// The guest's memory beside the host's state.
    pub fn split(&mut self) -> Result<(&mut [u8], &mut HostState), Status> {
        let memory = self.memory()?;
        Ok(memory.data_and_store_mut(&mut self.caller))
    }

    pub fn write(&mut self, at: u32, bytes: &[u8]) -> Answer {
        let (memory, _) = self.split()?;
        span(at, u32_of(bytes.len())).of_mut(memory)?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn write_u32(&mut self, at: u32, value: u32) -> Answer {
        self.write(at, &value.to_le_bytes())
    }

    pub fn write_u64(&mut self, at: u32, value: u64) -> Answer {
        self.write(at, &value.to_le_bytes())
    }

    /// Hands the bytes that `fill` appends to the guest, in memory that the guest itself allocates.
    pub fn give(
        &mut self,
        return_pointer: u32,
        return_length: u32,
        fill: impl FnOnce(&[u8], &mut HostState, &mut Vec<u8>) -> Answer,
    ) -> Answer {
        let (memory, state) = self.split()?;
        let mut bytes = std::mem::take(&mut state.scratch);
        bytes.clear();
        let answer = match fill(memory, state, &mut bytes) {
            Ok(()) => self.give_bytes(return_pointer, return_length, &bytes),
            Err(status) => Err(status),
        };
        self.state().scratch = bytes;
        answer
    }

    fn give_bytes(&mut self, return_pointer: u32, return_length: u32, bytes: &[u8]) -> Answer {
        let mut pointer = 0;
        if !bytes.is_empty() {
            // Taken out for the call: an allocator that asks the host for memory would never end.
            let allocate = self.state().allocate.take().ok_or(Status::InternalFailure)?;
            // A trap in the guest's allocator, or its deadline, shows again as soon as the guest goes on.
            let allocated = allocate.call(&mut self.caller, u32_of(bytes.len()));
            self.state().allocate = Some(allocate);
            pointer = allocated.map_err(|_| Status::InternalFailure)?;
            if pointer == 0 {
                return Err(Status::InternalFailure);
            }
        }
        let (memory, _) = self.split()?;
        let length = u32_of(bytes.len());
        span(pointer, length).of_mut(memory)?.copy_from_slice(bytes);
        span(return_pointer, 4).of_mut(memory)?.copy_from_slice(&pointer.to_le_bytes());
        span(return_length, 4).of_mut(memory)?.copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

/// Registers functions of the module `env`: a name, its parameters, and a body that answers with a status.
macro_rules! functions {
    ($linker:expr; $($name:ident($guest:ident $(, $param:ident: $type:ty)*) $body:block)*) => {
        $(
            $linker.func_wrap(
                "env",
                stringify!($name),
                |caller: wasmtime::Caller<'_, $crate::state::HostState> $(, $param: $type)*| -> u32 {
                    #[allow(unused_mut)]
                    let mut $guest = $crate::imports::guest::Guest::new(caller);
                    // A closure, so that the body can leave with `?`.
                    #[allow(unused_mut)]
                    let mut body = move || -> $crate::imports::guest::Answer { $body };
                    $crate::imports::guest::status(body())
                },
            )?;
        )*
    };
}
pub(super) use functions;
