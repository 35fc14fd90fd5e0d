//! The kernel accepts every program, and spends no more on checking it than its budget says.
use aya::programs::Program;
use weft_bpf_abi::program;
use weft_bpf_tests::object::{self, PinFolder};

/// Instructions that the verifier walks; the kernel's own limit is a million.
const BUDGETS: [(&str, u32); 16] = [
    (program::CONNECT4, 10_000),
    (program::CONNECT6, 10_000),
    (program::SENDMSG4, 10_000),
    (program::SENDMSG6, 10_000),
    (program::RECVMSG4, 1_000),
    (program::RECVMSG6, 1_000),
    (program::GETPEERNAME4, 1_000),
    (program::GETPEERNAME6, 1_000),
    (program::BIND4, 1_000),
    (program::BIND6, 1_000),
    (program::FROM_POD, 40_000),
    (program::TO_POD, 40_000),
    (program::FROM_NETWORK, 40_000),
    (program::FROM_TUNNEL, 40_000),
    (program::TO_NETWORK, 10_000),
    (program::REOPEN_TIME_WAIT, 10_000),
];

#[test]
fn every_program_loads_within_its_budget() {
    let pins = PinFolder::new();
    let mut bpf = object::load(&pins);
    let mut over = Vec::new();
    for (name, budget) in BUDGETS {
        let program = bpf.program_mut(name).unwrap_or_else(|| panic!("the object has no program {name}"));
        let info = match program {
            Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
            Program::CgroupSockAddr(program) => program.load().and_then(|()| program.info()),
            Program::SkLookup(program) => program.load().and_then(|()| program.info()),
            other => panic!("{name} is a {:?}", other.prog_type()),
        };
        let info = info.unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:#?}"));
        let walked = info.verified_instruction_count().expect("kernels since 5.16 tell");
        println!("{name}: {walked} of {budget}");
        if walked > budget {
            over.push((name, walked, budget));
        }
    }
    assert_eq!(bpf.programs().count(), BUDGETS.len(), "each program has a budget");
    assert!(over.is_empty(), "over budget: {over:?}");
}
