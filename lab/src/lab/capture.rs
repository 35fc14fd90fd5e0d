//! A capture on a link between regions, by tcpdump.
use crate::layout::{Layout, netns_path};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// tcpdump hands packets over in blocks; this is longer than a block waits.
const LAST_BLOCK: Duration = Duration::from_millis(300);

/// tcpdump ends with this.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    pub(super) fn start(layout: &Layout, link: &str, filter: &str) -> Self {
        let file = layout.runtime().join(format!("{link}-{}.pcap", serial()));
        let netns = File::open(netns_path(&layout.fabric_netns())).expect("the fabric's namespace");
        let mut command = Command::new("tcpdump");
        command.args(["-i", link, "-n", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&file).arg(filter);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: one system call between fork and exec, on a descriptor that is open already.
        unsafe {
            command.pre_exec(move || Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?));
        }
        let mut child = command.spawn().expect("tcpdump is installed");
        let errors = child.stderr.take().expect("tcpdump's messages");
        let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening on")), "tcpdump does not listen on {link}");
        // Its later messages have to go somewhere, or it would stop at a full pipe.
        thread::spawn(move || lines.for_each(drop));
        Self { child, file }
    }

    /// Ends the capture and counts the packets that match a filter of tcpdump's.
    pub fn finish(mut self) -> Finished {
        thread::sleep(LAST_BLOCK);
        self.stop();
        Finished { file: self.file.clone() }
    }

    fn stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It has not been waited for, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A capture that has ended; its file goes with the lab.
pub struct Finished {
    pub file: PathBuf,
}

impl Finished {
    /// How many packets match.
    pub fn count(&self, filter: &str) -> usize {
        self.lines(filter).len()
    }

    /// The packets that match, as tcpdump writes them.
    pub fn lines(&self, filter: &str) -> Vec<String> {
        let output = Command::new("tcpdump").args(["-n", "-r"]).arg(&self.file).arg(filter).output();
        let output = output.expect("tcpdump is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Whether these bytes passed, in whatever packet.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let content = std::fs::read(&self.file).expect("the capture's file");
        content.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Tells the captures of one process apart.
fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
