//! The rest of WASI preview 1. Runtimes import it and some call it at their start; plugins have no files and no
//! sockets, so the answers say so in the way that those runtimes take well.
use super::{
    guest::Guest,
    wasi::errno::{BADF, FAULT, NOENT, NOSYS, NOTDIR, NOTSUP, SUCCESS},
};
use crate::state::HostState;
use wasmtime::{Caller, Linker, Result};

/// Functions of one module that only return a number.
macro_rules! stubs {
    ($linker:expr, $module:expr; $($name:ident($($type:ty),*) = $errno:expr;)*) => {
        $( $linker.func_wrap($module, stringify!($name), |$(_: $type),*| $errno)?; )*
    };
}

pub fn add(linker: &mut Linker<HostState>, module: &str) -> Result<()> {
    stubs! { linker, module;
        fd_read(u32, u32, u32, u32) = NOSYS;
        fd_seek(u32, i64, u32, u32) = NOSYS;
        fd_close(u32) = SUCCESS;
        fd_fdstat_set_flags(u32, u32) = NOSYS;
        fd_fdstat_set_rights(u32, u64, u64) = NOTSUP;
        fd_advise(u32, u64, u64, u32) = NOTSUP;
        fd_allocate(u32, u64, u64) = NOTSUP;
        fd_datasync(u32) = NOTSUP;
        fd_filestat_get(u32, u32) = BADF;
        fd_filestat_set_size(u32, u64) = NOTSUP;
        fd_filestat_set_times(u32, u64, u64, u32) = NOTSUP;
        fd_pread(u32, u32, u32, u64, u32) = NOSYS;
        fd_prestat_get(u32, u32) = BADF;
        fd_prestat_dir_name(u32, u32, u32) = NOSYS;
        fd_pwrite(u32, u32, u32, u64, u32) = NOSYS;
        fd_readdir(u32, u32, u32, u64, u32) = NOTDIR;
        fd_renumber(u32, u32) = NOTSUP;
        fd_sync(u32) = NOTSUP;
        fd_tell(u32, u32) = NOTSUP;
        path_create_directory(u32, u32, u32) = NOTSUP;
        path_filestat_get(u32, u32, u32, u32, u32) = NOTSUP;
        path_filestat_set_times(u32, u32, u32, u32, u64, u64, u32) = NOTSUP;
        path_link(u32, u32, u32, u32, u32, u32, u32) = NOTSUP;
        path_open(u32, u32, u32, u32, u32, u64, u64, u32, u32) = NOENT;
        path_readlink(u32, u32, u32, u32, u32, u32) = NOTSUP;
        path_remove_directory(u32, u32, u32) = NOTSUP;
        path_rename(u32, u32, u32, u32, u32, u32) = NOTSUP;
        path_symlink(u32, u32, u32, u32, u32) = NOTSUP;
        path_unlink_file(u32, u32, u32) = NOTSUP;
        proc_raise(u32) = NOTSUP;
        sched_yield() = SUCCESS;
        sock_accept(u32, u32, u32) = NOTSUP;
        sock_recv(u32, u32, u32, u32, u32, u32) = NOTSUP;
        sock_send(u32, u32, u32, u32, u32) = NOTSUP;
        sock_shutdown(u32, u32) = NOTSUP;
    }
    linker.func_wrap(module, "fd_fdstat_get", |caller: Caller<'_, HostState>, fd: u32, stat: u32| {
        const RIGHT_TO_WRITE: u8 = 64;
        if fd != 1 && fd != 2 {
            return BADF;
        }
        let mut bytes = [0; 24];
        bytes[8] = RIGHT_TO_WRITE;
        Guest::new(caller).write(stat, &bytes).map_or(FAULT, |()| SUCCESS)
    })?;
    // Go's scheduler polls and must hear of success, even if of nothing else.
    linker.func_wrap(module, "poll_oneoff", |caller: Caller<'_, HostState>, _: u32, _: u32, _: u32, events: u32| {
        Guest::new(caller).write_u32(events, 0).map_or(FAULT, |()| SUCCESS)
    })?;
    // Plugins built with old Emscripten ask for these. One name for both kinds of WASI: registered once.
    if module == "wasi_unstable" {
        linker.func_wrap("env", "pthread_equal", |left: u32, right: u32| u32::from(left == right))?;
        linker.func_wrap("env", "emscripten_notify_memory_growth", |_: u32| {})?;
    }
    Ok(())
}
