//! Processes that end with us, and what a process has used.
use anyhow::{Context, Result};
use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{SysconfVar, sysconf},
};
use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Child, Command},
};

/// Killed when dropped, and when this process dies.
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`.
pub fn owned(mut command: Command) -> Result<Owned> {
    // SAFETY: between fork and exec one system call is made.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    Ok(Owned(command.spawn().with_context(|| format!("cannot start {command:?}"))?))
}

/// Seconds of processor time, all threads, in user space and in the kernel.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} has no times"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel does not tell how long a tick is")?;
    Ok(ticks as f64 / per_second as f64)
}

/// utime and stime; the name before them may hold anything, so fields are counted from its last parenthesis.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some(times.next()?? + times.next()??)
}

/// Resident memory in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmRSS"))? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_after_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 40 0 0 20 0 3 0 12345";
        assert_eq!(ticks(stat), Some(290));
        assert_eq!(ticks("7 (cut) S 1"), None);
    }
}
