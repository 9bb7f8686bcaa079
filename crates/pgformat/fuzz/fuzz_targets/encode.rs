#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| leeward_pgformat_fuzz::encode(input));
