//! Pinned maps and their replacement.

use cni_agent::{
    desired::{Desired, Table},
    kernel::{Kernel, Linux, Scope, bpf, maps},
    reconcile::Change,
};
use cni_ebpf::abi::{self, Addr, Config, Flow, FlowKey, MapSpec, MapType, Peer, Port, Racy, Slot};

use crate::namespace::{Host, attach_to, block_on, cable, on_host};

fn flow(number: u16) -> (Vec<u8>, Vec<u8>) {
    let key = FlowKey {
        a_port: Port::new(number),
        proto: 6,
        ..FlowKey::default()
    };
    let value = Flow {
        seen: Racy::new(u64::from(number)),
        ..Flow::default()
    };
    (abi::as_bytes(&key).to_vec(), abi::as_bytes(&value).to_vec())
}

fn load(linux: &mut Linux) {
    block_on(linux.apply(&Change::Load(Config::DEFAULT))).unwrap();
}

fn put_peer(linux: &mut Linux, last: u8) -> Result<(), cni_agent::kernel::KernelError> {
    let peer = Peer {
        class: u32::from(last),
        ..Peer::default()
    };
    block_on(linux.apply(&Change::Put {
        table: Table::Peers,
        key: abi::as_bytes(&Addr::v4([10, 0, 0, last])).to_vec(),
        value: abi::as_bytes(&peer).to_vec(),
    }))
}

#[test]
fn entries_are_written_read_and_deleted() {
    on_host(|host| {
        let mut linux = host.linux(None);
        load(&mut linux);
        put_peer(&mut linux, 1).unwrap();
        put_peer(&mut linux, 2).unwrap();
        let wanted = Desired::default();
        let seen = block_on(linux.observe(&wanted, Scope::Whole)).unwrap();
        assert_eq!(seen.tables.peers.len(), 2);
        let key = abi::as_bytes(&Addr::v4([10, 0, 0, 1])).to_vec();
        let delete = Change::Delete {
            table: Table::Peers,
            key,
        };
        block_on(linux.apply(&delete)).unwrap();
        block_on(linux.apply(&delete)).unwrap();
        // Another process sees the same.
        let mut other = host.linux(None);
        let seen = block_on(other.observe(&wanted, Scope::Whole)).unwrap();
        assert_eq!(
            seen.tables.peers.keys().collect::<Vec<_>>(),
            [&Addr::v4([10, 0, 0, 2])]
        );
        assert_eq!(seen.config, None);
    });
}

#[test]
fn a_full_map_names_itself_the_setting_and_the_remedy() {
    on_host(|host| {
        let mut config = host.config.clone();
        config.maps.peers = 2;
        let mut linux = Linux::open(&config).unwrap();
        load(&mut linux);
        // A hash that is not preallocated may hold a few more than it says.
        let error = (0..=255)
            .find_map(|last| put_peer(&mut linux, last).err())
            .unwrap()
            .to_string();
        assert!(error.contains("peers") && error.contains("full"), "{error}");
        assert!(
            error.contains("maps.peers") && error.contains("restart"),
            "{error}"
        );
    });
}

#[test]
fn batches_carry_more_than_one_call_holds() {
    on_host(|host| {
        let spec = MapSpec {
            entries: 20_000,
            ..*maps::spec("peers").unwrap()
        };
        let map = maps::Map::create(&spec, 20_000).unwrap();
        let entries: maps::Entries = (0..10_000_u32)
            .map(|i| {
                (
                    abi::as_bytes(&Addr::v4(i.to_be_bytes())).to_vec(),
                    vec![1; spec.value],
                )
            })
            .collect();
        map.put_all(&entries).unwrap();
        assert_eq!(map.dump().unwrap(), entries);
        assert_eq!(map.remove_all(entries.keys()).unwrap(), 10_000);
        assert_eq!(map.count().unwrap(), 0);
        // Trees and arrays are walked too.
        let tree = maps::Map::create(maps::spec("routes").unwrap(), 100).unwrap();
        let key = abi::as_bytes(&abi::Prefix::host(Addr::v4([10, 0, 0, 1]))).to_vec();
        tree.put(&key, &[7; 32]).unwrap();
        assert_eq!(tree.dump().unwrap().len(), 1);
        let array = maps::Map::create(maps::spec("rule_sets").unwrap(), 16).unwrap();
        array.put(&5_u32.to_ne_bytes(), &[1; 8]).unwrap();
        assert_eq!(array.dump().unwrap().len(), 1);
        drop(host.pins());
    });
}

#[test]
fn rel_29_connections_survive_a_resize_up_and_down() {
    on_host(|host| {
        let mut linux = host.linux(None);
        load(&mut linux);
        let spec = maps::spec("conntrack").unwrap();
        let (key, value) = flow(1);
        maps::open(&host.pins(), spec)
            .unwrap()
            .unwrap()
            .put(&key, &value)
            .unwrap();
        drop(linux);
        for size in [4096, 512] {
            let mut config = host.config.clone();
            config.maps.conntrack = size;
            let mut linux = Linux::open(&config).unwrap();
            load(&mut linux);
            // The old name is taken over when no old program runs: none was attached, so at the first look.
            block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
            let map = maps::open(&host.pins(), spec).unwrap().unwrap();
            assert_eq!(map.capacity(), size);
            assert_eq!(map.get(&key).unwrap(), Some(value.clone()), "{size}");
            assert!(!host.pins().next_map(spec).exists());
        }
    });
}

#[test]
fn slots_keep_their_places_through_a_resize_and_the_hash_that_they_were_is_collected() {
    on_host(|host| {
        let spec = maps::spec("service_slots").unwrap();
        let hash = MapSpec {
            version: 1,
            map_type: MapType::Hash,
            key: 8,
            value: 4,
            ..*spec
        };
        let map = maps::Map::create(&hash, 16).unwrap();
        bpf::pin(&map, &host.pins().map(&hash)).unwrap();
        let slot = Slot::new(7, 8, Addr::v4([10, 1, 0, 2]), Port::new(80));
        let row = |place: u32| (place.to_ne_bytes().to_vec(), abi::as_bytes(&slot).to_vec());
        for (size, left) in [(100, vec![]), (200, vec![3, 99]), (50, vec![3])] {
            let mut config = host.config.clone();
            config.maps.service_slots = size;
            let mut linux = Linux::open(&config).unwrap();
            load(&mut linux);
            block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
            assert!(!host.pins().map(&hash).exists());
            assert!(!host.pins().next_map(spec).exists());
            let map = maps::open(&host.pins(), spec).unwrap().unwrap();
            assert_eq!(map.capacity(), size);
            assert_eq!(map.dump().unwrap(), left.into_iter().map(row).collect(), "{size}");
            for (key, value) in [3, 99].into_iter().filter(|place| *place < size).map(row) {
                map.put(&key, &value).unwrap();
            }
            let taken_away = Change::DeleteAll {
                table: Table::ServiceSlots,
                keys: row(7).0,
            };
            map.put(&row(7).0, &row(7).1).unwrap();
            block_on(linux.apply(&taken_away)).unwrap();
        }
    });
}

/// Programs run on the newer one.
#[test]
fn a_resize_that_was_interrupted_leaves_the_slots_that_were_written_since() {
    on_host(|host| {
        cable("eth0");
        let mut linux = host.linux(None);
        load(&mut linux);
        block_on(linux.apply(&attach_to("eth0"))).unwrap();
        let spec = maps::spec("service_slots").unwrap();
        let slot = |set| Slot::new(set, 8, Addr::v4([10, 1, 0, 2]), Port::new(80));
        let row = |place: u32, set| (place.to_ne_bytes().to_vec(), abi::as_bytes(&slot(set)).to_vec());
        let old = maps::open(&host.pins(), spec).unwrap().unwrap();
        old.put_all([(&row(1, 5).0, &row(1, 5).1), (&row(2, 5).0, &row(2, 5).1)])
            .unwrap();
        drop(linux);
        let mut config = host.config.clone();
        config.maps.service_slots = 2048;
        for _ in 0..2 {
            let mut linux = Linux::open(&config).unwrap();
            load(&mut linux);
            let (keys, values) = row(1, 6);
            let table = Table::ServiceSlots;
            block_on(linux.apply(&Change::PutAll { table, keys, values })).unwrap();
            // Where only agents write, nothing is taken back to what it was.
            block_on(linux.apply(&Change::CarryOver)).unwrap();
            let mut found = Vec::new();
            let mut take = |key: &[u8], value: &[u8]| found.push((key.to_vec(), value.to_vec()));
            block_on(linux.scan(table, &mut take)).unwrap();
            assert_eq!(found, [row(1, 6), row(2, 5)]);
        }
    });
}

#[test]
fn rel_29_what_old_programs_write_during_a_resize_is_kept() {
    on_host(|host| {
        cable("eth0");
        let attach = attach_to("eth0");
        let mut linux = host.linux(None);
        load(&mut linux);
        block_on(linux.apply(&attach)).unwrap();
        drop(linux);

        let mut config = host.config.clone();
        config.maps.conntrack = 2048;
        let spec = maps::spec("conntrack").unwrap();
        let mut linux = Linux::open(&config).unwrap();
        load(&mut linux);
        let (key, value) = flow(9);
        maps::open(&host.pins(), spec)
            .unwrap()
            .unwrap()
            .put(&key, &value)
            .unwrap();
        block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
        assert!(host.pins().next_map(spec).exists(), "an old program still runs");
        // Killed here, the next agent goes on.
        drop(linux);
        let mut linux = Linux::open(&config).unwrap();
        load(&mut linux);
        block_on(linux.apply(&attach)).unwrap();
        block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
        let map = maps::open(&host.pins(), spec).unwrap().unwrap();
        assert_eq!((map.capacity(), map.get(&key).unwrap()), (2048, Some(value)));
        assert!(!host.pins().next_map(spec).exists());
    });
}

#[test]
fn rel_29_programs_are_exchanged_between_two_copies_of_what_old_ones_write() {
    on_host(|host| {
        cable("eth0");
        let attach = attach_to("eth0");
        let mut linux = host.linux(None);
        load(&mut linux);
        block_on(linux.apply(&attach)).unwrap();
        drop(linux);

        let mut config = host.config.clone();
        config.maps.conntrack = 2048;
        let mut linux = Linux::open(&config).unwrap();
        let spec = maps::spec("conntrack").unwrap();
        let open = |path: &std::path::Path| maps::open_at(path, spec).unwrap().unwrap();
        let old = open(&host.pins().map(spec));
        let [(first, before), (second, _), (third, after)] = [flow(1), flow(2), flow(3)];
        old.put(&first, &before).unwrap();
        load(&mut linux);
        let new = open(&host.pins().next_map(spec));
        // Another connection takes the place of one that was copied, and one more begins.
        old.put(&first, &after).unwrap();
        old.put(&second, &before).unwrap();
        let holds_back = || {
            let settings = maps::open_existing(&host.pins(), "settings").unwrap();
            let row = settings.get(&0_u32.to_ne_bytes()).unwrap().unwrap();
            abi::from_bytes::<abi::Settings>(&row).unwrap().unsettled_until != 0
        };
        assert!(!holds_back());
        block_on(linux.apply(&Change::CarryOver)).unwrap();
        assert!(holds_back());
        assert_eq!(new.get(&first).unwrap().as_ref(), Some(&after));
        assert_eq!(new.get(&second).unwrap().as_ref(), Some(&before));
        block_on(linux.apply(&attach)).unwrap();
        // New programs run: what they have written is not lost to what an old one knew.
        old.put(&second, &after).unwrap();
        old.put(&third, &after).unwrap();
        block_on(linux.apply(&Change::CarryOver)).unwrap();
        assert_eq!(new.get(&second).unwrap().as_ref(), Some(&before));
        assert_eq!(new.get(&third).unwrap().as_ref(), Some(&after));
        assert_eq!(old.count().unwrap(), 3);
        assert!(host.pins().next_map(spec).exists(), "copying alone ends nothing");
        block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
        assert!(!host.pins().next_map(spec).exists());
        // Nothing is held back for maps that are what they should be.
        let settings = maps::open_existing(&host.pins(), "settings").unwrap();
        settings.put(&0_u32.to_ne_bytes(), &[0; 64]).unwrap();
        block_on(linux.apply(&Change::CarryOver)).unwrap();
        assert!(!holds_back());
    });
}

/// Which places of the map of programs are taken.
fn places(host: &Host) -> Vec<u32> {
    let programs = maps::open_existing(&host.pins(), "programs").unwrap();
    let entries = programs.dump().unwrap();
    entries.keys().filter_map(|key| abi::from_bytes(key)).collect()
}

#[test]
fn rel_29_the_programs_of_two_loads_find_each_other_until_maps_are_settled() {
    on_host(|host| {
        cable("eth0");
        let attach = attach_to("eth0");
        let settle = |linux: &mut Linux| {
            block_on(linux.apply(&attach)).unwrap();
            block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
        };
        let mut linux = host.linux(None);
        load(&mut linux);
        settle(&mut linux);
        let [first, second] = [[0, 1, 2, 3], [4, 5, 6, 7]];
        assert_eq!(places(host), first);
        // Those of a load on the same tables know no more than its own.
        let mut linux = host.linux(None);
        load(&mut linux);
        assert_eq!(places(host), second);
        settle(&mut linux);
        let mut config = host.config.clone();
        config.maps.conntrack = 2048;
        let mut linux = Linux::open(&config).unwrap();
        load(&mut linux);
        assert_eq!(places(host), [first, second].concat());
        let before = maps::open_existing(&host.pins(), "programs")
            .unwrap()
            .dump()
            .unwrap();
        // Killed here, the next one takes the place of the one that came too far, and leaves the other.
        let mut linux = Linux::open(&config).unwrap();
        load(&mut linux);
        let after = maps::open_existing(&host.pins(), "programs")
            .unwrap()
            .dump()
            .unwrap();
        let same = before.iter().filter(|(place, id)| after.get(*place) == Some(*id));
        let same: Vec<u32> = same.filter_map(|(place, _)| abi::from_bytes(place)).collect();
        assert_eq!(same, second);
        settle(&mut linux);
        assert_eq!(places(host), first);
    });
}

#[test]
fn rel_29_a_kept_map_without_a_description_is_refused_and_stays() {
    on_host(|host| {
        let spec = maps::spec("conntrack").unwrap();
        let unknown = MapSpec {
            version: 9,
            value: 200,
            ..*spec
        };
        let map = maps::Map::create(&unknown, 16).unwrap();
        let path = host.pins().map(&unknown);
        bpf::pin(&map, &path).unwrap();
        let error = block_on(host.linux(None).apply(&Change::Load(Config::DEFAULT))).unwrap_err();
        assert!(error.to_string().contains("unknown to this release"), "{error}");
        assert!(error.to_string().contains("uninstall"), "{error}");
        assert!(path.exists());
    });
}

#[test]
fn a_pin_of_another_kind_is_refused() {
    on_host(|host| {
        let spec = maps::spec("endpoints").unwrap();
        let other = MapSpec {
            map_type: MapType::LruHash,
            ..*spec
        };
        let map = maps::Map::create(&other, 16).unwrap();
        bpf::pin(&map, &host.pins().map(spec)).unwrap();
        let error = block_on(host.linux(None).apply(&Change::Load(Config::DEFAULT))).unwrap_err();
        assert!(error.to_string().contains("map endpoints"), "{error}");
    });
}

#[test]
fn dead_pins_of_maps_are_collected() {
    on_host(|host| {
        let peers = maps::spec("peers").unwrap();
        for (name, version) in [("peers", 8), ("forgotten", 1)] {
            let spec = MapSpec {
                name,
                version,
                ..*peers
            };
            let map = maps::Map::create(&spec, 16).unwrap();
            bpf::pin(&map, &host.pins().map(&spec)).unwrap();
        }
        load(&mut host.linux(None));
        let names = cni_agent::kernel::pins::names(&host.pins().maps()).unwrap();
        assert!(names.contains(&"peers_v1".to_owned()));
        assert!(!names.contains(&"peers_v8".to_owned()) && !names.contains(&"forgotten_v1".to_owned()));
    });
}

#[test]
fn a_folder_that_is_no_bpffs_is_refused_with_a_remedy() {
    on_host(|host| {
        let mut config = host.config.clone();
        config.paths.bpffs = "/tmp/millrace-no-bpffs".into();
        let error = block_on(
            Linux::open(&config)
                .unwrap()
                .apply(&Change::Load(Config::DEFAULT)),
        )
        .unwrap_err();
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    });
}

/// A description of conntrack as a release wrote it that has one field more, in the middle.
fn newer_layout() -> (serde_json::Value, usize) {
    let record = |layout: &abi::Layout, shift: usize| {
        let fields: Vec<_> = layout
            .fields
            .iter()
            .map(|field| {
                let offset = if field.offset >= 8 {
                    field.offset + shift
                } else {
                    field.offset
                };
                serde_json::json!({"name": field.name, "offset": offset, "size": field.size})
            })
            .collect();
        serde_json::json!({"size": layout.size + shift, "fields": fields})
    };
    let description =
        serde_json::json!({"key": record(&FlowKey::LAYOUT, 0), "value": record(&Flow::LAYOUT, 8)});
    (description, size_of::<Flow>() + 8)
}

#[test]
fn rel_29_connections_of_another_layout_are_carried_over() {
    on_host(|host| {
        let spec = maps::spec("conntrack").unwrap();
        let (description, value_size) = newer_layout();
        let theirs = MapSpec {
            version: 2,
            value: value_size,
            ..*spec
        };
        let map = maps::Map::create(&theirs, 64).unwrap();
        let (key, value) = flow(5);
        let mut newer = value.clone();
        newer.splice(8..8, [0xff; 8]);
        map.put(&key, &newer).unwrap();
        bpf::pin(&map, &host.pins().map(&theirs)).unwrap();
        let mut text = serde_json::to_vec(&description).unwrap();
        text.resize(8192, b' ');
        let described = bpf::create_map("layout", 2, 4, 8192, 1, 0).unwrap();
        bpf::update(&described, &[0; 4], &text, 0).unwrap();
        bpf::pin(&described, &host.pins().layout(&theirs)).unwrap();

        let mut linux = host.linux(None);
        load(&mut linux);
        let ours = maps::open(&host.pins(), spec).unwrap().unwrap();
        assert_eq!(ours.get(&key).unwrap(), Some(value));
        // Programs of the other release may still run: what they add counts until they are exchanged.
        let (late_key, late_value) = flow(6);
        let mut late = late_value.clone();
        late.splice(8..8, [0; 8]);
        map.put(&late_key, &late).unwrap();
        block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap();
        assert_eq!(ours.get(&late_key).unwrap(), Some(late_value));
        assert!(!host.pins().map(&theirs).exists() && !host.pins().layout(&theirs).exists());
    });
}
