//! What is read from /proc.

use crate::measure::*;

#[test]
fn a_process_may_be_called_anything() {
    let rest = "S 1 1 1 0 -1 4194304 100 0 0 0 17 25 3 4 20 0 1 0 5";
    for name in ["(nginx)", "(a b)", "(x) 9 9 9 (y)", "(()"] {
        assert_eq!(ticks_of(&format!("4711 {name} {rest}")), 42, "{name}");
    }
    for cut in ["", "4711 (nginx", "4711 (nginx) S 1 1"] {
        assert_eq!(ticks_of(cut), 0, "{cut}");
    }
}

#[test]
fn the_machine_is_busy_without_its_interrupts() {
    //           user nice system idle iowait irq softirq steal guest
    let text = "cpu  100 20 3 9999 999 55 66 7 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
    assert_eq!(machine_ticks(text), 130);
    assert_eq!(machine_ticks(""), 0);
    assert_eq!(machine_ticks("cpu 5"), 5);
}

fn memory(slabs: &[(&str, u64, u64)]) -> KernelMemory {
    let slabs = slabs.iter().map(|(name, objects, size)| ((*name).to_owned(), (*objects, *size)));
    KernelMemory { slabs: slabs.collect(), ..KernelMemory::default() }
}

#[test]
fn connections_bring_the_caches_that_grew_with_them() {
    let before = memory(&[("TCP", 100, 2304), ("filp", 5000, 192), ("dentry", 9, 192)]);
    let after = memory(&[
        ("TCP", 20_100, 2304),
        ("filp", 25_000, 192),
        // A build beside it opened files.
        ("ext4_inode_cache", 20_000, 1000),
        ("inode_cache", 20_000, 600),
        // A cache of its own name, not of the file systems.
        ("sock_inode_cache", 20_000, 832),
        // Too few for every fourth connection, and too many.
        ("kmalloc-64", 2000, 64),
        ("skbuff_head_cache", 900_000, 232),
        // Shrunk.
        ("dentry", 1, 192),
    ]);
    let brought = after.brought_by(&before, 10_000);
    assert_eq!(brought, 20_000 * 2304 + 20_000 * 192 + 20_000 * 832);
    assert_eq!(before.brought_by(&after, 10_000), 0);
    let first = after.growth_since(&before).into_iter().next();
    assert_eq!(first, Some(("skbuff_head_cache".to_owned(), 900_000 * 232)));
}
