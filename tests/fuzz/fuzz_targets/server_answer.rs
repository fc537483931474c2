#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::target("server_answer")(data));
