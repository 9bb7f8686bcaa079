//! Half of the time the input is changed as a frame: its streams get other rows, its columns other modes. Changes of single bytes
//! seldom come that far, since a stream's length must fit the others'.

#![no_main]

#[path = "../../src/page_transform/frame_layout.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod frame_layout;
#[path = "../../src/page_transform/made_damage.rs"]
mod made_damage;

use leeward_pgformat_fuzz::HEAD;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|input: &[u8]| leeward_pgformat_fuzz::decode(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(2) && size >= HEAD {
        let mut frame = data[HEAD..size].to_vec();
        made_damage::damage(&mut frame, seed.into());
        if let Some(room) = data[HEAD..max_size].get_mut(..frame.len()) {
            room.copy_from_slice(&frame);
            return HEAD + frame.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
});
