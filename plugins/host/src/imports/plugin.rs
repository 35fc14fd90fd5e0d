//! Log, time, tick.
use super::guest::{functions, span};
use crate::{abi::Status, log::lowest_level, state::HostState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wasmtime::{Linker, Result};

const HIGHEST_LOG_LEVEL: u32 = 5;

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_log(guest, level: u32, start: u32, length: u32) {
            let (memory, state) = guest.split()?;
            let message = span(start, length).of(memory)?;
            if level > HIGHEST_LOG_LEVEL {
                return Err(Status::BadArgument);
            }
            state.log.write(&state.identity.name, level, message);
            Ok(())
        }
        proxy_get_log_level(guest, return_level: u32) {
            guest.write_u32(return_level, lowest_level())
        }
        proxy_get_current_time_nanoseconds(guest, return_time: u32) {
            guest.write_u64(return_time, now())
        }
        proxy_set_tick_period_milliseconds(guest, period: u32) {
            guest.state().tick_period = (period > 0).then(|| Duration::from_millis(period.into()));
            Ok(())
        }
    }
    Ok(())
}

/// Nanoseconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
