//! The bitmap: a set of extents, in the bit order of the disk (spec/on-disk.md, Activemap).

use hast_format::bitmap::Bitmap;

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// The bitmap in these bytes.
    fn from_bytes(bits: u32, bytes: &[u8]) -> Bitmap {
        Bitmap::from_bytes(bits, bytes)
    }

    /// A bitmap's bytes.
    fn bytes(map: &Bitmap, count: usize) -> Vec<u8> {
        map.bytes(0..count)
    }

    /// Sets or clears a bit, and says whether that changed anything.
    fn change(map: &mut Bitmap, bit: u32, set: bool) -> bool {
        if set { map.insert(bit) } else { map.remove(bit) }
    }

    /// The next set bit.
    fn next_from(map: &Bitmap, from: u32) -> Option<u32> {
        map.next_from(from)
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// Most bits of a bitmap here: more than two words.
const MOST: u64 = 130;

/// Bit `i` is bit `i % 8` of byte `i / 8`, in both directions; bits at and past the end are padding, ignored in
/// what is read and 0 in what is written.
pub fn order<T: Subject>(source: &mut impl Source) -> Case {
    let bits = source.number(1..=MOST, &(1..=MOST).collect::<Vec<_>>()) as u32;
    let bit = source.number(0..=MOST + 70, &(0..=MOST + 70).collect::<Vec<_>>()) as u32;
    let mut one = Bitmap::new(bits);
    assert_eq!(T::change(&mut one, bit, true), bit < bits);
    let bytes = T::bytes(&one, 32);
    let mut expected = [0; 32];
    if bit < bits {
        expected[bit as usize / 8] = 1 << (bit % 8);
    }
    assert_eq!(bytes[..], expected, "bit {bit} of {bits}");
    // Back, from bytes that have every padding bit set.
    for (at, byte) in expected.iter_mut().enumerate() {
        for n in 0..8 {
            if at as u32 * 8 + n >= bits {
                *byte |= 1 << n;
            }
        }
    }
    assert_eq!(T::from_bytes(bits, &expected), one, "bit {bit} of {bits}");
    assert_eq!(one.iter().collect::<Vec<_>>(), if bit < bits { vec![bit] } else { vec![] });
    Ok(())
}

/// Up to `steps` changes of any bits, against an array of truth values.
pub fn set<T: Subject>(source: &mut impl Source, steps: u64) -> Case {
    let bits = source.pick(&[1_u32, 8, 64, 65, 130]);
    let few = [0, 7, 63, 64, 65, 129].map(|bit| bit.min(u64::from(bits)));
    let mut map = Bitmap::new(bits);
    let mut model = [false; MOST as usize];
    for _ in 0..steps {
        let bit = source.number(0..=u64::from(bits), &few) as u32;
        let set = source.bool();
        let changes = bit < bits && model[bit as usize] != set;
        assert_eq!(T::change(&mut map, bit, set), changes);
        if changes {
            model[bit as usize] = set;
        }
    }
    let members: Vec<u32> = (0..bits).filter(|bit| model[*bit as usize]).collect();
    assert_eq!(map.iter().collect::<Vec<_>>(), members);
    assert_eq!((map.count() as usize, map.is_empty()), (members.len(), members.is_empty()));
    for from in 0..bits + 2 {
        assert_eq!(T::next_from(&map, from), members.iter().copied().find(|bit| *bit >= from));
        assert_eq!(map.contains(from), members.contains(&from));
    }
    assert_eq!(T::from_bytes(bits, &T::bytes(&map, 24)), map);
    // Together with another set.
    let mut union = Bitmap::full(bits);
    union.union(&map);
    assert_eq!(union, Bitmap::full(bits));
    let mut union = Bitmap::new(bits);
    union.union(&map);
    assert_eq!(union, map);
    union.clear();
    assert_eq!(union, Bitmap::new(bits));
    Ok(())
}
