use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_pages_come_back(seed in prop::collection::vec(any::<u8>(), 1..600), first in any::<u32>()) {
        let pages: Vec<u8> = seed.iter().copied().cycle().take(3 * PAGE_SIZE).collect();
        let blocks = [0, 1, 7].map(|step| BlockNumber(first.wrapping_add(step)));
        let (mut transform, mut apart, mut plain) = (PageTransform::new(), Vec::new(), Vec::new());
        if transform.take_apart(&pages, &blocks, None, &mut apart).is_some() {
            transform.put_together(&apart, &blocks, &mut plain).unwrap();
            prop_assert_eq!(plain, pages);
        }
    }
}
