#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| procpool::fuzzing::manager_message(bytes));
