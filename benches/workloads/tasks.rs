//! What the workers run.

use sha2::{Digest, Sha256};

pub(crate) fn identity(n: u64) -> u64 {
    n
}

pub(crate) fn identities(ns: Vec<u64>) -> Vec<u64> {
    ns.into_iter().map(identity).collect()
}

/// Takes so many microseconds of this process's CPU time.
pub(crate) fn spin(micros: u64) -> u64 {
    let cpu = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .expect("a clock");
        now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1_000
    };
    let start = cpu();
    while cpu() - start < micros {}
    micros
}

/// Sleeps for so many milliseconds.
pub(crate) fn sleep(millis: u64) {
    std::thread::sleep(std::time::Duration::from_millis(millis));
}

/// The first byte of the SHA-256 of 64 KiB made from a seed.
pub(crate) fn sha(seed: u64) -> u64 {
    let data = seed.to_le_bytes().repeat(8192);
    u64::from(Sha256::digest(data)[0])
}
