//! A plugin's log lines: to the process's log, and the last ones kept for reports.
use std::{cell::RefCell, collections::VecDeque, rc::Rc};
use tracing::{Level, enabled, event, level_filters::LevelFilter};

const LINES: usize = 20;
/// Longer lines are cut.
const LINE_BYTES: usize = 4096;

/// The last lines of one plugin on one thread; outlives its instances.
#[derive(Clone, Default)]
pub struct LogRing {
    lines: Rc<RefCell<VecDeque<String>>>,
}

impl LogRing {
    pub fn lines(&self) -> Vec<String> {
        self.lines.borrow().iter().cloned().collect()
    }

    /// `level` by its number in the ABI, 0 (trace) to 5 (critical).
    pub fn write(&self, plugin: &str, level: u32, message: &[u8]) {
        let text = String::from_utf8_lossy(&message[..message.len().min(LINE_BYTES)]);
        match level {
            0 => event!(target: "weft::plugin", Level::TRACE, plugin, "{text}"),
            1 => event!(target: "weft::plugin", Level::DEBUG, plugin, "{text}"),
            2 => event!(target: "weft::plugin", Level::INFO, plugin, "{text}"),
            3 => event!(target: "weft::plugin", Level::WARN, plugin, "{text}"),
            _ => event!(target: "weft::plugin", Level::ERROR, plugin, "{text}"),
        }
        let mut lines = self.lines.borrow_mut();
        // The oldest line's memory serves the newest.
        let mut line = if lines.len() >= LINES { lines.pop_front().unwrap_or_default() } else { String::new() };
        line.clear();
        line.push_str(&text);
        lines.push_back(line);
    }
}

/// The lowest level that somebody reads, by its number in the ABI.
pub fn lowest_level() -> u32 {
    if !enabled!(target: "weft::plugin", Level::ERROR) {
        return 5;
    }
    match LevelFilter::current() {
        LevelFilter::TRACE => 0,
        LevelFilter::DEBUG => 1,
        LevelFilter::INFO => 2,
        LevelFilter::WARN => 3,
        _ => 4,
    }
}
