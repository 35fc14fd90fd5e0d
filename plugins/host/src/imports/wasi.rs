//! The part of WASI preview 1 that has a meaning for a plugin: output, clocks, random bytes, environment, exit.
use super::{
    guest::{Answer, Guest, Span, span, u32_of, usize_of},
    plugin::now,
};
use crate::state::HostState;
use std::{sync::LazyLock, time::Instant};
use wasmtime::{Caller, Linker, Result};

pub mod errno {
    pub const SUCCESS: u32 = 0;
    pub const BADF: u32 = 8;
    pub const FAULT: u32 = 21;
    pub const INVAL: u32 = 28;
    pub const NOENT: u32 = 44;
    pub const NOSYS: u32 = 52;
    pub const NOTDIR: u32 = 54;
    pub const NOTSUP: u32 = 58;
}

const LOG_INFO: u32 = 2;
const LOG_ERROR: u32 = 4;
/// What one write may put into the log.
const WRITE_BYTES: usize = 64 << 10;
const RANDOM_BYTES: usize = 64 << 10;
const VECTORS: u32 = 1024;

/// Programs of Go end at once when the monotonic clock shows zero, so it begins at one second.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const FIRST_NS: u64 = 1_000_000_000;

pub fn add(linker: &mut Linker<HostState>, module: &str) -> Result<()> {
    linker.func_wrap(
        module,
        "fd_write",
        |caller: Caller<'_, HostState>, fd: u32, vectors: u32, count: u32, written: u32| {
            fd_write(&mut Guest::new(caller), fd, vectors, count, written)
        },
    )?;
    linker.func_wrap(module, "clock_time_get", |caller: Caller<'_, HostState>, id: u32, _: u64, time: u32| {
        let now = match id {
            0 => now(),
            1 => FIRST_NS + u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX / 2),
            _ => return errno::NOTSUP,
        };
        errno_of(Guest::new(caller).write_u64(time, now))
    })?;
    linker.func_wrap(module, "clock_res_get", |caller: Caller<'_, HostState>, _: u32, resolution: u32| {
        errno_of(Guest::new(caller).write_u64(resolution, 1))
    })?;
    linker.func_wrap(module, "random_get", |caller: Caller<'_, HostState>, start: u32, length: u32| {
        random_get(&mut Guest::new(caller), start, length)
    })?;
    linker.func_wrap(module, "environ_sizes_get", |caller: Caller<'_, HostState>, count: u32, size: u32| {
        let mut guest = Guest::new(caller);
        let environment = &guest.state().identity.environment;
        let (entries, bytes) = (environment.len(), environment.iter().map(Vec::len).sum());
        errno_of(guest.write_u32(count, u32_of(entries)).and_then(|()| guest.write_u32(size, u32_of(bytes))))
    })?;
    linker.func_wrap(module, "environ_get", |caller: Caller<'_, HostState>, pointers: u32, bytes: u32| {
        environ_get(&mut Guest::new(caller), pointers, bytes)
    })?;
    linker.func_wrap(module, "args_sizes_get", |caller: Caller<'_, HostState>, count: u32, size: u32| {
        let mut guest = Guest::new(caller);
        errno_of(guest.write_u32(count, 0).and_then(|()| guest.write_u32(size, 0)))
    })?;
    linker.func_wrap(module, "args_get", |_: u32, _: u32| errno::SUCCESS)?;
    linker.func_wrap(module, "proc_exit", |mut caller: Caller<'_, HostState>, code: u32| -> Result<()> {
        caller.data_mut().exit_code = Some(code.cast_signed());
        Err(wasmtime::Error::msg("the plugin called exit"))
    })?;
    Ok(())
}

fn errno_of(answer: Answer) -> u32 {
    answer.map_or(errno::FAULT, |()| errno::SUCCESS)
}

/// Standard output and standard error go to the plugin's log.
fn fd_write(guest: &mut Guest<'_>, fd: u32, vectors: u32, count: u32, written: u32) -> u32 {
    let level = match fd {
        1 => LOG_INFO,
        2 => LOG_ERROR,
        _ => return errno::BADF,
    };
    if count > VECTORS {
        return errno::INVAL;
    }
    let Ok((memory, state)) = guest.split() else { return errno::FAULT };
    let mut text = Vec::new();
    let mut total: u32 = 0;
    for index in 0..count {
        let Some(bytes) = vector(memory, vectors, index).and_then(|span| span.of(memory).ok()) else {
            return errno::FAULT;
        };
        total = total.saturating_add(u32_of(bytes.len()));
        text.extend_from_slice(&bytes[..bytes.len().min(WRITE_BYTES.saturating_sub(text.len()))]);
    }
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    if !line.is_empty() {
        state.log.write(&state.identity.name, level, line);
    }
    errno_of(guest.write_u32(written, total))
}

fn vector(memory: &[u8], vectors: u32, index: u32) -> Option<Span> {
    let at = usize_of(vectors.checked_add(index.checked_mul(8)?)?);
    let number = |at: usize| Some(u32::from_le_bytes(memory.get(at..at + 4)?.try_into().ok()?));
    Some(span(number(at)?, number(at + 4)?))
}

fn random_get(guest: &mut Guest<'_>, start: u32, length: u32) -> u32 {
    if usize_of(length) > RANDOM_BYTES {
        return errno::INVAL;
    }
    let Ok((memory, _)) = guest.split() else { return errno::FAULT };
    let start = usize_of(start);
    let Some(mut rest) = memory.get_mut(start..start + usize_of(length)) else { return errno::FAULT };
    while !rest.is_empty() {
        // SAFETY: `rest` is valid memory of that length to write to.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = &mut rest[got..],
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return errno::NOSYS,
        }
    }
    errno::SUCCESS
}

fn environ_get(guest: &mut Guest<'_>, pointers: u32, bytes: u32) -> u32 {
    let environment = std::mem::take(&mut guest.state().identity.environment);
    let mut at = bytes;
    let mut answer = Ok(());
    for (index, entry) in environment.iter().enumerate() {
        answer = guest
            .write_u32(pointers.wrapping_add(u32_of(index).wrapping_mul(4)), at)
            .and_then(|()| guest.write(at, entry));
        if answer.is_err() {
            break;
        }
        at = at.wrapping_add(u32_of(entry.len()));
    }
    guest.state().identity.environment = environment;
    errno_of(answer)
}
