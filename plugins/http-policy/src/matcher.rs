//! Many regular expressions against one text in one pass, each anchored at both ends.
//!
//! Classes such as `\w` mean ASCII, as in RE2, which Cilium's proxy uses.
use regex_automata::{
    Anchored, Input, MatchKind,
    dfa::{Automaton, StartKind, dense},
    nfa::thompson::{self, pikevm},
    util::{start, syntax},
};
use std::cell::RefCell;

/// What each expression is compiled to. A dense automaton takes a few nanoseconds a byte whatever their number; where
/// it would be too large, each expression is tried by itself.
pub struct Patterns {
    engine: Engine,
}

enum Engine {
    Dense(Box<dense::DFA<Vec<u32>>>),
    Each(Vec<Single>),
}

/// One expression, with memory for its search.
struct Single {
    machine: pikevm::PikeVM,
    cache: RefCell<pikevm::Cache>,
}

/// Memory of one automaton, and for building it.
const DENSE_BYTES: usize = 2 << 20;
const BUILD_BYTES: usize = 16 << 20;

/// The expression is none, in words.
#[derive(Debug)]
pub struct BadPattern(pub String);

impl Patterns {
    /// All of them must have passed `check`.
    pub fn new(patterns: &[String]) -> Result<Self, BadPattern> {
        let anchored: Vec<String> = patterns.iter().map(|pattern| anchored(pattern)).collect();
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(DENSE_BYTES))
            .determinize_size_limit(Some(BUILD_BYTES));
        let dense = dense::Builder::new().configure(config).syntax(ascii()).build_many(&anchored);
        if let Ok(dense) = dense {
            return Ok(Self { engine: Engine::Dense(Box::new(dense)) });
        }
        let each = anchored.iter().map(|pattern| compile(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { engine: Engine::Each(each) })
    }

    /// Says what is wrong with an expression.
    pub fn check(pattern: &str) -> Result<(), BadPattern> {
        // By itself first: `a)|(b` would become valid inside the anchors.
        compile(pattern)?;
        compile(&anchored(pattern)).map(|_| ())
    }

    /// Calls `found` with the index of each expression that matches the whole text.
    pub fn matching(&self, text: &[u8], mut found: impl FnMut(usize)) {
        match &self.engine {
            Engine::Dense(dense) => {
                let start = start::Config::new().anchored(Anchored::Yes);
                // An anchored search without look-behind bytes has a start state.
                let Ok(mut state) = dense.start_state(&start) else { return };
                for byte in text {
                    state = dense.next_state(state, *byte);
                    if dense.is_dead_state(state) {
                        return;
                    }
                }
                state = dense.next_eoi_state(state);
                if dense.is_match_state(state) {
                    (0..dense.match_len(state)).for_each(|index| found(dense.match_pattern(state, index).as_usize()));
                }
            }
            Engine::Each(each) => {
                for (index, Single { machine, cache }) in each.iter().enumerate() {
                    if machine.is_match(&mut cache.borrow_mut(), Input::new(text).anchored(Anchored::Yes)) {
                        found(index);
                    }
                }
            }
        }
    }

    pub fn any(&self, text: &[u8]) -> bool {
        let mut any = false;
        self.matching(text, |_| any = true);
        any
    }
}

fn anchored(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

fn ascii() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false)
}

/// Names of Unicode classes need Unicode mode; then `\w` and the like mean Unicode too, for that expression only.
fn compile(pattern: &str) -> Result<Single, BadPattern> {
    let config = thompson::Config::new().utf8(false).nfa_size_limit(Some(BUILD_BYTES));
    let build = |syntax| {
        let built = pikevm::Builder::new().thompson(config.clone()).syntax(syntax).build(pattern);
        built.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            BadPattern(source.unwrap_or_else(|| error.to_string()))
        })
    };
    let machine = build(ascii()).or_else(|_| build(syntax::Config::new().utf8(false)))?;
    let cache = RefCell::new(machine.create_cache());
    Ok(Single { machine, cache })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(patterns: &[&str], text: &str) -> Vec<usize> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let mut found = vec![];
        Patterns::new(&patterns).unwrap().matching(text.as_bytes(), |index| found.push(index));
        found.sort_unstable();
        found
    }

    #[test]
    fn the_whole_text_must_match() {
        assert_eq!(matching(&["/api", "/api/.*", "^/api/x$", ".*", "x|/api/x|y"], "/api/x"), [1, 2, 3, 4]);
        assert_eq!(matching(&["/api", "a|/api"], "/api/x"), [0; 0]);
        assert_eq!(matching(&["", "a*"], ""), [0, 1]);
    }

    #[test]
    fn classes_are_ascii_as_in_re2() {
        assert_eq!(matching(&[r"\d+"], "٣"), [0; 0]);
        assert_eq!(matching(&[r"\p{Nd}+", "x"], "٣"), [0]);
    }

    #[test]
    fn expressions_that_are_too_large_for_one_automaton_are_tried_one_by_one() {
        let wide: Vec<String> = (0..12).map(|n| format!("(?:a|b)*a(?:a|b){{{}}}", n + 8)).collect();
        let patterns = Patterns::new(&wide).unwrap();
        assert!(matches!(patterns.engine, Engine::Each(_)));
        let mut found = vec![];
        patterns.matching(&[&b"a"[..], &[b'b'; 10]].concat(), |index| found.push(index));
        assert_eq!(found, [2]);
    }

    #[test]
    fn a_bad_expression_is_explained() {
        for bad in ["(", "a)|(b", "[z-a]", "a{99999}{99999}", "(?P<x"] {
            assert!(!Patterns::check(bad).unwrap_err().0.is_empty(), "{bad}");
        }
    }
}
