//! Counts what really ran: the results that libtest prints, and stages that pass or fail as a whole.
use std::fmt;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Tally {
    pub const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// What a run of `cargo test` did. One that failed without a failed test (it did not compile, or it crashed)
    /// counts as one failure; one that succeeded without a test counts nothing.
    pub fn of_cargo_test(output: &str, succeeded: bool) -> Self {
        let mut tally = Self::default();
        for line in output.lines().filter(|line| line.starts_with("test result: ")) {
            tally.passed += number_before(line, " passed");
            tally.failed += number_before(line, " failed");
            tally.skipped += number_before(line, " ignored");
        }
        if !succeeded && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The names of the tests that libtest reports as failed or as ignored.
pub fn named<'a>(output: &'a str, result: &str) -> Vec<&'a str> {
    let suffix = format!(" ... {result}");
    let tests = output.lines().filter_map(|line| line.strip_prefix("test "));
    tests.filter_map(|line| line.split_once(&suffix).map(|(name, _)| name)).collect()
}

fn number_before(line: &str, word: &str) -> usize {
    let Some((before, _)) = line.split_once(word) else { return 0 };
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test one ... ok
test two ... FAILED
test three ... ignored, needs KVM
test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
running 1 test
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn results_of_all_test_binaries_are_added() {
        assert_eq!(Tally::of_cargo_test(OUTPUT, false), Tally { passed: 13, failed: 1, skipped: 1 });
        assert_eq!(named(OUTPUT, "FAILED"), ["two"]);
        assert_eq!(named(OUTPUT, "ignored"), ["three"]);
    }

    #[test]
    fn a_test_binary_that_does_not_compile_is_a_failure() {
        assert_eq!(Tally::of_cargo_test("error: could not compile", false), Tally::FAILED);
    }
}
