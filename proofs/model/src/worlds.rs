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
    /// What may happen.
    pub budget: Budget,
}

impl World {
    /// Where it begins.
    #[must_use]
    pub fn initial(&self) -> State {
        let meta = |local, remote, peer_boot, was_primary| Meta {
            resuid: 1,
            local,
            remote,
            was_primary,
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
            primary: None,
        });
        let mut engine = operator::start(&nodes[0].disk, self.extents, self.keepdirty);
        if self.in_step {
            engine.peer = (0, 0);
        }
        nodes[0].primary = Some(engine);
        State {
            nodes,
            link: if self.in_step { Link::Up { cleared: true } } else { Link::Down },
            left: self.budget,
            written: 0,
            drawn: u8::from(self.in_step),
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
};

const fn world(mode: Replication, budget: Budget) -> World {
    World { mode, extents: 2, keepdirty: 1, variant: None, in_step: true, budget }
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

/// Everything that is explored in full.
pub const ALL: &[Check] = &[
    check("failover, fullsync", failover(Fullsync), 673_104),
    check("failover, memsync", failover(Memsync), 969_608),
    check("failover, async", failover(Async), 925_304),
    check("hand-over, fullsync", hand_over(Fullsync), 269_797),
    check("hand-over, memsync", hand_over(Memsync), 313_957),
    check("hand-over, async", hand_over(Async), 270_381),
    check("faults, fullsync", faults(Fullsync), 506_682),
    check("flushes, fullsync", flushes(Fullsync), 1_589_692),
    check("flushes and kills, memsync", flushes_and_kills(Memsync), 448_887),
    check("there and back, fullsync", there_and_back(Fullsync), 1_143_617),
    check("kills, memsync", kills(Memsync), 746_971),
    check("created, fullsync", created(Fullsync, 2, 1), 202_837),
    check("created, async", created(Async, 1, 2), 242_569),
    check("forced, fullsync", forced(Fullsync), 103_556),
    check("three extents, memsync", three(Memsync), 97_244),
];

/// Smaller ones, for `cargo test`.
pub const SMALL: &[Check] = &[
    check(
        "failover, fullsync",
        world(Fullsync, Budget { writes: 1, cuts: 1, powers: 1, roles: 1, ..NOTHING }),
        16_646,
    ),
    check("hand-over, memsync", world(Memsync, Budget { writes: 2, roles: 3, ..NOTHING }), 8_649),
    check("faults, async", world(Async, Budget { writes: 1, powers: 1, faults: 1, ..NOTHING }), 3_358),
    check(
        "flushes, fullsync",
        world(Fullsync, Budget { writes: 1, powers: 1, cuts: 1, flush_faults: [0, 1], ..NOTHING }),
        42_352,
    ),
    check(
        "created, fullsync",
        World {
            in_step: false,
            ..world(Fullsync, Budget { writes: 1, cuts: 1, roles: 1, creates: 1, ..NOTHING })
        },
        16_509,
    ),
];

/// Where a mistake of the original is looked for.
#[must_use]
pub const fn of(variant: Variant) -> World {
    let budget = match variant {
        Variant::L1 => Budget { writes: 1, cuts: 1, ..NOTHING },
        Variant::L2 | Variant::L3 => Budget { writes: 1, faults: 1, ..NOTHING },
        Variant::L5 => Budget { writes: 2, roles: 4, ..NOTHING },
        Variant::L6 => Budget { writes: 1, cuts: 1, powers: 1, roles: 1, ..NOTHING },
        Variant::L7 => Budget { writes: 2, cuts: 1, powers: 1, roles: 2, ..NOTHING },
        Variant::L9 => Budget { writes: 1, powers: 1, flush_faults: [0, 1], ..NOTHING },
        Variant::L10 => Budget { writes: 1, powers: 1, ..NOTHING },
    };
    World { variant: Some(variant), ..world(Fullsync, budget) }
}
