//! The worlds that are explored, and what they hold.

use hast_engine::Durable;
use hast_net::Replication;

use crate::operator;
use crate::state::{Budget, Cached, Disk, EXTENTS, Ghost, Link, Meta, Node, Seen, State};
use crate::variant::Variant;

/// A world to be explored to its end.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// What it is about.
    pub name: &'static str,
    /// The world.
    pub world: World,
    /// How many states it has. A change of the model, or of the engine's rules, may change that: then it is to be
    /// looked at and recorded anew; a number that falls unnoticed would be a check that looks at less.
    pub states: usize,
}

/// A bounded world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The replication mode.
    pub mode: Replication,
    /// Extents of the data area, at most [`EXTENTS`].
    pub extents: usize,
    /// The map keeps so many most recently written extents.
    pub keepdirty: u32,
    /// A rule of the original in the place of ours.
    pub variant: Option<Variant>,
    /// The nodes begin in step and connected; otherwise both were just created, and the first is primary.
    pub in_step: bool,
    /// Connections have generations (G1), and attempts to connect are counted.
    pub generations: bool,
    /// What may happen.
    pub budget: Budget,
}

impl World {
    /// Where it begins.
    #[must_use]
    pub fn initial(&self) -> State {
        let meta = |local, remote, peer_boot, was_primary| Meta {
            resuid: 1,
            connection: if self.generations { 1 << 8 } else { 0 },
            local,
            remote,
            was_primary,
            map_complete: was_primary,
            peer_boot,
            ..Meta::default()
        };
        let metas = if self.in_step {
            [meta(1, 0, 1, true), meta(0, 1, 1, false)]
        } else {
            [Meta { was_primary: true, ..Meta::default() }, Meta::default()]
        };
        let mut nodes = metas.map(|meta| Node {
            disk: Disk {
                data: [0; EXTENTS].map(Cached::new),
                map: Cached::new(0),
                meta: Cached::new(meta),
                dropped: 0,
            },
            boot: 1,
            durable: Durable::new(u32::try_from(self.extents).unwrap_or(0)),
            doubts: false,
            primary: None,
        });
        let mut engine = operator::start(&nodes[0].disk, self);
        if self.in_step {
            (engine.peer, engine.peer_boot) = ((0, 0), 1);
        }
        nodes[0].primary = Some(engine);
        State {
            nodes,
            link: if self.in_step { Link::Up { cleared: true } } else { Link::Down },
            left: self.budget,
            written: 0,
            drawn: u8::from(self.in_step),
            snapshot: None,
            ghost: Ghost {
                may: [1; EXTENTS],
                alone: [0; 2],
                loose: 0,
                changed: [0; 2],
                flushed: 0,
                behind: [0; 2],
                fell_back: [0; 2],
                should_know: [false; 2],
                window: false,
                seen: Seen::default(),
            },
        }
    }
}

use Replication::{Async, Fullsync, Memsync};

const NOTHING: Budget = Budget {
    writes: 0,
    at_once: 1,
    cuts: 0,
    powers: 0,
    kills: 0,
    roles: 0,
    forced: 0,
    creates: 0,
    faults: 0,
    flush_faults: [0; 2],
    flushes: 0,
    reads: 0,
    save_faults: 0,
    rollbacks: 0,
    connects: 0,
};

const fn world(mode: Replication, budget: Budget) -> World {
    World { mode, extents: 2, keepdirty: 1, variant: None, in_step: true, generations: false, budget }
}

const fn check(name: &'static str, world: World, states: usize) -> Check {
    Check { name, world, states }
}

/// Two writes side by side, a cut, a loss of power and a change of roles.
const fn failover(mode: Replication) -> World {
    world(mode, Budget { writes: 2, at_once: 2, cuts: 1, powers: 1, roles: 1, ..NOTHING })
}

/// Roles change hands again and again.
const fn hand_over(mode: Replication) -> World {
    world(mode, Budget { writes: 3, roles: 4, ..NOTHING })
}

/// A disk fails, a node loses power.
const fn faults(mode: Replication) -> World {
    world(mode, Budget { writes: 2, powers: 1, cuts: 1, faults: 1, ..NOTHING })
}

/// A flush fails on the secondary, a node loses power.
const fn flushes(mode: Replication) -> World {
    world(mode, Budget { writes: 2, powers: 1, cuts: 1, flush_faults: [0, 1], ..NOTHING })
}

/// A flush fails on the secondary, a worker is killed.
const fn flushes_and_kills(mode: Replication) -> World {
    world(mode, Budget { writes: 2, kills: 1, roles: 1, flush_faults: [0, 1], ..NOTHING })
}

/// A role goes there and back, with a cut and a loss of power.
const fn there_and_back(mode: Replication) -> World {
    world(mode, Budget { writes: 2, cuts: 1, powers: 1, roles: 2, ..NOTHING })
}

/// Workers are killed.
const fn kills(mode: Replication) -> World {
    world(mode, Budget { writes: 2, cuts: 1, kills: 1, roles: 1, faults: 1, ..NOTHING })
}

/// Two providers that were just created, one of them created again.
const fn created(mode: Replication, writes: u8, roles: u8) -> World {
    let budget = Budget { writes, cuts: 1, roles, creates: 1, ..NOTHING };
    World { in_step: false, ..world(mode, budget) }
}

/// An out-of-date node is made primary by force.
const fn forced(mode: Replication) -> World {
    world(mode, Budget { writes: 2, cuts: 1, roles: 3, forced: 1, ..NOTHING })
}

/// One more extent.
const fn three(mode: Replication) -> World {
    let budget = Budget { writes: 2, at_once: 2, cuts: 1, roles: 1, ..NOTHING };
    World { extents: 3, ..world(mode, budget) }
}

/// A client's flush, with everything that can keep the secondary out of it.
const fn client_flush(mode: Replication) -> World {
    world(mode, Budget { writes: 1, flushes: 1, cuts: 1, powers: 1, roles: 2, ..NOTHING })
}

/// A client's flush between two writes; either node is primary.
const fn flush_and_hand_over(mode: Replication) -> World {
    world(mode, Budget { writes: 2, flushes: 1, powers: 1, roles: 2, ..NOTHING })
}

/// A client's flush that fails on the secondary, or its first one does.
const fn flush_fails_there(mode: Replication) -> World {
    let budget = Budget { writes: 1, flushes: 1, powers: 1, roles: 2, flush_faults: [0, 1], ..NOTHING };
    world(mode, budget)
}

/// A flush that fails on the primary, on the secondary or on both.
const fn flush_fails_anywhere(mode: Replication) -> World {
    world(mode, Budget { writes: 1, flushes: 1, powers: 1, flush_faults: [1, 1], ..NOTHING })
}

/// A flush that fails on the primary, whose worker is killed.
const fn flush_fails_here(mode: Replication) -> World {
    world(mode, Budget { writes: 1, flushes: 1, powers: 1, kills: 1, flush_faults: [1, 0], ..NOTHING })
}

/// Reads that the primary's disk fails, and repairs that do.
const fn reads(mode: Replication) -> World {
    world(mode, Budget { writes: 1, reads: 1, powers: 1, faults: 2, ..NOTHING })
}

/// More of them, beside writes that fail on either node.
const fn reads_and_writes(mode: Replication) -> World {
    world(mode, Budget { writes: 2, reads: 2, faults: 2, ..NOTHING })
}

/// Reads of what a failed flush may have dropped.
const fn reads_of_dropped(mode: Replication) -> World {
    world(mode, Budget { writes: 1, reads: 1, powers: 1, faults: 1, flush_faults: [1, 0], ..NOTHING })
}

/// A write fails on the primary, whose metadata cannot be saved.
const fn unrecordable(mode: Replication) -> World {
    world(mode, Budget { writes: 2, powers: 1, kills: 1, faults: 1, save_faults: 1, ..NOTHING })
}

/// A planned end while the secondary has refused a write.
const fn planned_end(mode: Replication) -> World {
    world(mode, Budget { writes: 1, cuts: 1, powers: 1, roles: 2, faults: 1, ..NOTHING })
}

/// A secondary's worker dies, and the next one's first flush fails.
const fn doubts(mode: Replication) -> World {
    world(mode, Budget { writes: 1, powers: 1, kills: 1, roles: 1, flush_faults: [0, 1], ..NOTHING })
}

/// Connections have generations, and break off at every step.
const fn generations(mode: Replication) -> World {
    let budget = Budget { writes: 1, cuts: 2, powers: 1, roles: 2, connects: 3, ..NOTHING };
    World { generations: true, ..world(mode, budget) }
}

/// A node's disk is set back.
const fn set_back(mode: Replication, cuts: u8, connects: u8) -> World {
    let budget = Budget { writes: 1, cuts, roles: 2, rollbacks: 1, connects, ..NOTHING };
    World { generations: true, ..world(mode, budget) }
}

/// The same, after which it is written before it meets the other one.
const fn set_back_and_written(mode: Replication) -> World {
    let budget = Budget { writes: 2, roles: 3, rollbacks: 1, connects: 3, ..NOTHING };
    World { generations: true, ..world(mode, budget) }
}

/// Everything that is explored in full.
pub const ALL: &[Check] = &[
    check("failover, fullsync", failover(Fullsync), 440_124),
    check("failover, memsync", failover(Memsync), 625_118),
    check("failover, async", failover(Async), 581_582),
    check("hand-over, fullsync", hand_over(Fullsync), 249_470),
    check("hand-over, memsync", hand_over(Memsync), 289_964),
    check("hand-over, async", hand_over(Async), 251_608),
    check("faults, fullsync", faults(Fullsync), 389_186),
    check("flushes, fullsync", flushes(Fullsync), 1_250_494),
    check("flushes and kills, memsync", flushes_and_kills(Memsync), 455_696),
    check("there and back, fullsync", there_and_back(Fullsync), 798_811),
    check("kills, memsync", kills(Memsync), 675_377),
    check("created, fullsync", created(Fullsync, 2, 1), 146_623),
    check("created, async", created(Async, 1, 2), 183_473),
    check("forced, fullsync", forced(Fullsync), 149_173),
    check("three extents, memsync", three(Memsync), 60_086),
    check("client's flush, fullsync", client_flush(Fullsync), 226_647),
    check("client's flush, memsync", client_flush(Memsync), 263_337),
    check("client's flush, async", client_flush(Async), 256_791),
    check("flush and hand-over, fullsync", flush_and_hand_over(Fullsync), 826_361),
    check(
        "flush after a failover, fullsync",
        world(Fullsync, Budget { writes: 1, flushes: 1, powers: 1, kills: 1, roles: 3, ..NOTHING }),
        687_521,
    ),
    check(
        "flush after a forced failover, fullsync",
        world(
            Fullsync,
            Budget { writes: 1, flushes: 1, powers: 1, kills: 1, roles: 3, forced: 1, ..NOTHING },
        ),
        1_446_793,
    ),
    check("flush fails there, fullsync", flush_fails_there(Fullsync), 363_696),
    check("flush fails anywhere, fullsync", flush_fails_anywhere(Fullsync), 309_800),
    check("flush fails here, fullsync", flush_fails_here(Fullsync), 216_700),
    check("reads, fullsync", reads(Fullsync), 80_741),
    check("reads, memsync", reads(Memsync), 112_861),
    check("reads and writes, async", reads_and_writes(Async), 155_375),
    check("reads of dropped, fullsync", reads_of_dropped(Fullsync), 266_834),
    check("unrecordable, fullsync", unrecordable(Fullsync), 2_068_957),
    check("planned end, async", planned_end(Async), 106_343),
    check("doubts, fullsync", doubts(Fullsync), 126_332),
    check("generations, fullsync", generations(Fullsync), 347_705),
    check("set back, fullsync", set_back(Fullsync, 1, 3), 119_108),
    check("set back, async", set_back(Async, 2, 4), 819_973),
    check("set back and written, fullsync", set_back_and_written(Fullsync), 209_166),
];

/// Smaller ones, for `cargo test`.
pub const SMALL: &[Check] = &[
    check(
        "failover, fullsync",
        world(Fullsync, Budget { writes: 1, cuts: 1, powers: 1, roles: 1, ..NOTHING }),
        12_632,
    ),
    check("hand-over, memsync", world(Memsync, Budget { writes: 2, roles: 3, ..NOTHING }), 8_271),
    check("faults, async", world(Async, Budget { writes: 1, powers: 1, faults: 1, ..NOTHING }), 2_660),
    check(
        "flushes, fullsync",
        world(Fullsync, Budget { writes: 1, powers: 1, cuts: 1, flush_faults: [0, 1], ..NOTHING }),
        32_773,
    ),
    check(
        "created, fullsync",
        World {
            in_step: false,
            ..world(Fullsync, Budget { writes: 1, cuts: 1, roles: 1, creates: 1, ..NOTHING })
        },
        14_101,
    ),
    check(
        "client's flush, memsync",
        world(Memsync, Budget { writes: 1, flushes: 1, powers: 1, roles: 1, ..NOTHING }),
        10_287,
    ),
    check("reads, async", world(Async, Budget { writes: 1, reads: 1, faults: 2, ..NOTHING }), 4_630),
    check(
        "set back, fullsync",
        World {
            generations: true,
            ..world(Fullsync, Budget { writes: 1, cuts: 1, roles: 1, rollbacks: 1, connects: 2, ..NOTHING })
        },
        8_145,
    ),
];

/// Where a mistake is looked for.
#[must_use]
pub const fn of(variant: Variant) -> World {
    let budget = match variant {
        Variant::L1 => Budget { writes: 1, cuts: 1, ..NOTHING },
        Variant::L2 | Variant::L3 => Budget { writes: 1, faults: 1, ..NOTHING },
        Variant::L5 => Budget { writes: 2, roles: 4, ..NOTHING },
        Variant::L6 => Budget { writes: 1, cuts: 1, powers: 1, roles: 1, ..NOTHING },
        Variant::L7 => Budget { writes: 2, cuts: 1, powers: 1, roles: 2, ..NOTHING },
        Variant::L9 => Budget { writes: 1, powers: 1, flush_faults: [0, 1], ..NOTHING },
        Variant::L10 => Budget { writes: 1, powers: 1, flushes: 1, ..NOTHING },
        Variant::C1d => Budget { writes: 1, powers: 1, roles: 2, flushes: 1, ..NOTHING },
        Variant::MapComplete => {
            Budget { writes: 1, powers: 1, kills: 1, roles: 3, forced: 1, flushes: 1, ..NOTHING }
        }
        Variant::L9Marked => {
            Budget { writes: 1, powers: 1, roles: 2, flushes: 1, flush_faults: [0, 1], ..NOTHING }
        }
        Variant::S1 => Budget { writes: 1, powers: 1, reads: 1, faults: 2, ..NOTHING },
        Variant::R1 => Budget { writes: 1, reads: 1, faults: 2, ..NOTHING },
        Variant::C4Marked => Budget { writes: 1, roles: 2, faults: 1, ..NOTHING },
        Variant::B1 => Budget { writes: 1, powers: 1, kills: 1, roles: 1, flush_faults: [0, 1], ..NOTHING },
        Variant::G1 => Budget { writes: 1, cuts: 1, roles: 2, rollbacks: 1, connects: 3, ..NOTHING },
        Variant::G1Counted => Budget { writes: 2, roles: 4, rollbacks: 1, connects: 3, ..NOTHING },
    };
    let mode = match variant {
        Variant::R1 | Variant::C4Marked => Async,
        _ => Fullsync,
    };
    let generations = matches!(variant, Variant::G1 | Variant::G1Counted);
    World { variant: Some(variant), generations, ..world(mode, budget) }
}
