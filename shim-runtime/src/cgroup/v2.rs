//! The metrics of a cgroup in the unified hierarchy, as the fields of `io.containerd.cgroups.v2.Metrics` (contract
//! 6.1). One directory has all files; a controller that is not enabled for the cgroup has none.

use super::message::{Message, NONE, Names};
use super::{Files, device, number};

const PROCESSOR: Names = &[
    ("usage_usec", 1),
    ("user_usec", 2),
    ("system_usec", 3),
    ("nr_periods", 4),
    ("nr_throttled", 5),
    ("throttled_usec", 6),
    ("nr_bursts", 8),
    ("burst_usec", 9),
];
const MEMORY: Names = &[
    ("anon", 1),
    ("file", 2),
    ("kernel_stack", 3),
    ("slab", 4),
    ("sock", 5),
    ("shmem", 6),
    ("file_mapped", 7),
    ("file_dirty", 8),
    ("file_writeback", 9),
    ("anon_thp", 10),
    ("inactive_anon", 11),
    ("active_anon", 12),
    ("inactive_file", 13),
    ("active_file", 14),
    ("unevictable", 15),
    ("slab_reclaimable", 16),
    ("slab_unreclaimable", 17),
    ("pgfault", 18),
    ("pgmajfault", 19),
    // Newer kernels tell the two kinds apart.
    ("workingset_refault", 20),
    ("workingset_refault_anon", 20),
    ("workingset_refault_file", 20),
    ("workingset_activate", 21),
    ("workingset_activate_anon", 21),
    ("workingset_activate_file", 21),
    ("workingset_nodereclaim", 22),
    ("pgrefill", 23),
    ("pgscan", 24),
    ("pgsteal", 25),
    ("pgactivate", 26),
    ("pgdeactivate", 27),
    ("pglazyfree", 28),
    ("pglazyfreed", 29),
    ("thp_fault_alloc", 30),
    ("thp_collapse_alloc", 31),
];
const MEMORY_NUMBERS: [(&str, usize); 5] = [
    ("memory.max", 33),
    ("memory.swap.current", 34),
    ("memory.swap.max", 35),
    ("memory.peak", 36),
    ("memory.swap.peak", 37),
];
/// By `oom_kill` CRI tells a container that ran out of memory from one that was killed.
const MEMORY_EVENTS: Names =
    &[("low", 1), ("high", 2), ("max", 3), ("oom", 4), ("oom_kill", 5), ("oom_group_kill", 6)];

/// `None` if nothing can be read: the cgroup has been removed.
pub(super) fn metrics(files: &mut Files, page_sizes: &[String]) -> Option<Message> {
    let (pids, cpu, memory) = (pids(files), cpu(files), memory(files));
    if pids.is_none() && cpu.is_none() && memory.is_none() {
        return None;
    }
    let mut metrics = Message::default();
    metrics.message(1, pids);
    metrics.message(2, cpu);
    metrics.message(4, memory);
    metrics.message(5, files.rdma());
    metrics.message(6, io(files));
    for size in page_sizes {
        metrics.message(7, hugetlb(files, size));
    }
    metrics.message(8, files.values("memory.events", MEMORY_EVENTS).map(|events| Message::of(&events)));
    Some(metrics)
}

fn pids(files: &mut Files) -> Option<Message> {
    let current = files.number("pids.current")?;
    Some(Message::of(&[0, current, files.number("pids.max").unwrap_or_default()]))
}

fn cpu(files: &mut Files) -> Option<Message> {
    let mut cpu = Message::of(&files.values("cpu.stat", PROCESSOR)?);
    cpu.message(7, pressure(files, "cpu.pressure"));
    Some(cpu)
}

fn memory(files: &mut Files) -> Option<Message> {
    let usage = files.number("memory.current")?;
    let mut values = files.values("memory.stat", MEMORY).unwrap_or(NONE);
    values[32] = usage;
    for (file, field) in MEMORY_NUMBERS {
        values[field] = files.number(file).unwrap_or_default();
    }
    let mut memory = Message::of(&values);
    memory.message(38, pressure(files, "memory.pressure"));
    Some(memory)
}

fn io(files: &mut Files) -> Option<Message> {
    let mut io = Message::default();
    files.text("io.stat")?.lines().for_each(|line| io.message(1, io_entry(line)));
    io.message(2, pressure(files, "io.pressure"));
    Some(io)
}

/// A line of `io.stat`: a device, and what was done with it.
fn io_entry(line: &str) -> Option<Message> {
    let mut entry = [0; 7];
    let mut any = false;
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            // Some kernels leave the line break out behind a device that has nothing to tell.
            (entry[1], entry[2]) = device(word)?;
            continue;
        };
        let field = match key {
            "rbytes" => 3,
            "wbytes" => 4,
            "rios" => 5,
            "wios" => 6,
            _ => continue,
        };
        entry[field] = number(value)?;
        any = true;
    }
    any.then(|| Message::of(&entry))
}

fn hugetlb(files: &mut Files, size: &str) -> Option<Message> {
    let current = files.number(&format!("hugetlb.{size}.current"))?;
    let max = files.number(&format!("hugetlb.{size}.max")).unwrap_or_default();
    let events = files.values(&format!("hugetlb.{size}.events"), &[("max", 4)]).unwrap_or(NONE);
    let mut stat = Message::of(&[0, current, max, 0, events[4]]);
    stat.bytes(3, size.as_bytes());
    Some(stat)
}

/// How long tasks were stalled for want of something: some of them, or all at once.
fn pressure(files: &mut Files, name: &str) -> Option<Message> {
    let mut pressure = Message::default();
    for line in files.text(name)?.lines() {
        match line.split_once(' ') {
            Some(("some", values)) => pressure.message(1, stalled(values)),
            Some(("full", values)) => pressure.message(2, stalled(values)),
            _ => {}
        }
    }
    Some(pressure)
}

/// `avg10=0.12 avg60=0.34 avg300=0.56 total=789`.
fn stalled(values: &str) -> Option<Message> {
    let mut data = Message::default();
    for word in values.split(' ') {
        let (key, value) = word.split_once('=')?;
        match key {
            "avg10" => data.double(1, percent(value)?),
            "avg60" => data.double(2, percent(value)?),
            "avg300" => data.double(3, percent(value)?),
            "total" => data.number(4, number(value)?),
            _ => {}
        }
    }
    Some(data)
}

/// A number with two decimals. All that a number may look like takes 12 KB of code to read.
fn percent(text: &str) -> Option<f64> {
    let (whole, hundredths) = text.split_once('.').filter(|(_, decimals)| decimals.len() == 2)?;
    let hundredths = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)?;
    Some(f64::from(hundredths) / 100.0)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
        RdmaEntry,
    };
    use protobuf::{Message as _, MessageField};

    use super::super::tests::Tree;
    use super::*;

    const MEMORY_STAT: &str = "anon 101\nfile 102\nkernel 9000\nkernel_stack 103\npagetables 9001\npercpu 9002\n\
        sock 105\nvmalloc 9003\nshmem 106\nzswap 9004\nfile_mapped 107\nfile_dirty 108\nfile_writeback 109\n\
        swapcached 9005\nanon_thp 110\nfile_thp 9006\ninactive_anon 111\nactive_anon 112\ninactive_file 113\n\
        active_file 114\nunevictable 115\nslab_reclaimable 116\nslab_unreclaimable 117\nslab 104\n\
        workingset_refault_anon 20\nworkingset_refault_file 100\nworkingset_activate_anon 21\n\
        workingset_activate_file 100\nworkingset_restore_anon 9007\nworkingset_nodereclaim 122\npgscan 124\n\
        pgsteal 125\npgscan_kswapd 9008\npgfault 118\npgmajfault 119\npgrefill 123\npgactivate 126\n\
        pgdeactivate 127\npglazyfree 128\npglazyfreed 129\nthp_fault_alloc 130\nthp_collapse_alloc 131\n";

    fn pressure_text(first: u32) -> String {
        let [some, full] = [first, first + 4];
        let line =
            |kind, n| format!("{kind} avg10=0.{n} avg60=0.{} avg300=1.{} total={}", n + 1, n + 2, n + 3);
        format!("{}\n{}\n", line("some", some), line("full", full))
    }

    fn psi(some: [f64; 3], some_total: u64, full: [f64; 3], full_total: u64) -> MessageField<PSIStats> {
        let data = |[avg10, avg60, avg300]: [f64; 3], total| {
            MessageField::some(PSIData { avg10, avg60, avg300, total, ..PSIData::default() })
        };
        let (some, full) = (data(some, some_total), data(full, full_total));
        MessageField::some(PSIStats { some, full, ..PSIStats::default() })
    }

    fn read(tree: &Tree) -> Option<Metrics> {
        let message = metrics(&mut Files::open(tree.root()).unwrap(), &["2MB".to_owned(), "1GB".to_owned()])?;
        Some(Metrics::parse_from_bytes(&message.into_bytes()).unwrap())
    }

    #[test]
    fn processor_time_comes_with_throttling_and_pressure() {
        let tree = Tree::new(&[
            (
                "cpu.stat",
                "usage_usec 1\nuser_usec 2\nsystem_usec 3\nnice_usec 900\ncore_sched.force_idle_usec 901\n\
                 nr_periods 4\nnr_throttled 5\nthrottled_usec 6\nnr_bursts 8\nburst_usec 9\n",
            ),
            ("cpu.pressure", &pressure_text(10)),
        ]);
        let expected = CPUStat {
            usage_usec: 1,
            user_usec: 2,
            system_usec: 3,
            nr_periods: 4,
            nr_throttled: 5,
            throttled_usec: 6,
            psi: psi([0.10, 0.11, 1.12], 13, [0.14, 0.15, 1.16], 17),
            nr_bursts: 8,
            burst_usec: 9,
            ..CPUStat::default()
        };
        assert_eq!(read(&tree).unwrap().cpu, MessageField::some(expected));
    }

    #[test]
    fn memory_comes_with_swap_limits_peaks_and_pressure() {
        let tree = Tree::new(&[
            ("memory.stat", MEMORY_STAT),
            ("memory.current", "132\n"),
            ("memory.max", "133\n"),
            ("memory.swap.current", "134\n"),
            ("memory.swap.max", "max\n"),
            ("memory.peak", "136\n"),
            ("memory.swap.peak", "137\n"),
            ("memory.pressure", &pressure_text(20)),
        ]);
        let expected = MemoryStat {
            anon: 101,
            file: 102,
            kernel_stack: 103,
            slab: 104,
            sock: 105,
            shmem: 106,
            file_mapped: 107,
            file_dirty: 108,
            file_writeback: 109,
            anon_thp: 110,
            inactive_anon: 111,
            active_anon: 112,
            inactive_file: 113,
            active_file: 114,
            unevictable: 115,
            slab_reclaimable: 116,
            slab_unreclaimable: 117,
            pgfault: 118,
            pgmajfault: 119,
            workingset_refault: 120,
            workingset_activate: 121,
            workingset_nodereclaim: 122,
            pgrefill: 123,
            pgscan: 124,
            pgsteal: 125,
            pgactivate: 126,
            pgdeactivate: 127,
            pglazyfree: 128,
            pglazyfreed: 129,
            thp_fault_alloc: 130,
            thp_collapse_alloc: 131,
            usage: 132,
            usage_limit: 133,
            swap_usage: 134,
            swap_limit: u64::MAX,
            max_usage: 136,
            swap_max_usage: 137,
            psi: psi([0.20, 0.21, 1.22], 23, [0.24, 0.25, 1.26], 27),
            ..MemoryStat::default()
        };
        assert_eq!(read(&tree).unwrap().memory, MessageField::some(expected));
    }

    #[test]
    fn processes_and_memory_events_are_counted() {
        let events = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n";
        let files = [("pids.current", "7\n"), ("pids.max", "max\n"), ("memory.events", events)];
        let metrics = read(&Tree::new(&files)).unwrap();
        let expected = PidsStat { current: 7, limit: u64::MAX, ..PidsStat::default() };
        assert_eq!(metrics.pids, MessageField::some(expected));
        let expected = MemoryEvents {
            low: 1,
            high: 2,
            max: 3,
            oom: 4,
            oom_kill: 5,
            oom_group_kill: 6,
            ..MemoryEvents::default()
        };
        assert_eq!(metrics.memory_events, MessageField::some(expected));
    }

    #[test]
    fn disks_are_told_apart_and_idle_ones_left_out() {
        let stat = "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:1 7:0 254:0 rbytes=7 wbytes=8 rios=9 \
            wios=10 dbytes=0 dios=0 cost.usage=11\n7:2 \n";
        let pressure = pressure_text(30);
        let metrics =
            read(&Tree::new(&[("pids.current", "1"), ("io.stat", stat), ("io.pressure", &pressure)]))
                .unwrap();
        let entry = |(major, minor), [rbytes, wbytes, rios, wios]: [u64; 4]| IOEntry {
            major,
            minor,
            rbytes,
            wbytes,
            rios,
            wios,
            ..IOEntry::default()
        };
        assert_eq!(metrics.io.usage, [entry((8, 16), [1, 2, 3, 4]), entry((254, 0), [7, 8, 9, 10])]);
        assert_eq!(metrics.io.psi, psi([0.30, 0.31, 1.32], 33, [0.34, 0.35, 1.36], 37));
    }

    #[test]
    fn huge_pages_and_rdma_devices_are_read() {
        let metrics = read(&Tree::new(&[
            ("pids.current", "1"),
            ("hugetlb.2MB.current", "4194304\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=0\n"),
            ("rdma.max", "mlx4_0 hca_handle=2 hca_object=max\n"),
        ]))
        .unwrap();
        let expected = HugeTlbStat {
            current: 4_194_304,
            max: u64::MAX,
            pagesize: "2MB".to_owned(),
            failcnt: 3,
            ..HugeTlbStat::default()
        };
        assert_eq!(metrics.hugetlb, [expected]);
        let entry = |device: &str, hca_handles, hca_objects| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        };
        assert_eq!(metrics.rdma.current, [entry("mlx4_0", 2, 2000), entry("ocrdma1", 3, 0)]);
        assert_eq!(metrics.rdma.limit, [entry("mlx4_0", 2, u32::MAX)]);
    }

    #[test]
    fn the_part_of_a_controller_that_is_not_enabled_is_unset() {
        let expected = CPUStat { usage_usec: 5, ..CPUStat::default() };
        let expected = Metrics { cpu: MessageField::some(expected), ..Metrics::default() };
        let files = [("cpu.stat", "usage_usec 5\n"), ("cgroup.controllers", "\n")];
        assert_eq!(read(&Tree::new(&files)), Some(expected));
    }

    #[test]
    fn a_removed_cgroup_has_no_metrics() {
        assert_eq!(read(&Tree::new(&[])), None);
    }
}
