//! The metrics of a process whose host gives each controller a hierarchy of its own, as the fields of
//! `io.containerd.cgroups.v1.Metrics` (contract 6.1). A controller that is not mounted, or in which the process
//! has no cgroup of its own, is left out.

use std::cell::LazyCell;
use std::path::Path;

use super::message::{Message, NONE, Names};
use super::{Files, device, number};
use crate::files;

/// The length of the ticks in `cpuacct.stat`: programs are told of 100 a second on every machine we run on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

const PROCESSOR: Names = &[("system", 2), ("user", 3)];
const BANDWIDTH: Names = &[("nr_periods", 1), ("nr_throttled", 2), ("throttled_time", 3)];
const MEMORY: Names = &[
    ("cache", 1),
    ("rss", 2),
    ("rss_huge", 3),
    ("mapped_file", 4),
    ("dirty", 5),
    ("writeback", 6),
    ("pgpgin", 7),
    ("pgpgout", 8),
    ("pgfault", 9),
    ("pgmajfault", 10),
    ("inactive_anon", 11),
    ("active_anon", 12),
    ("inactive_file", 13),
    ("active_file", 14),
    ("unevictable", 15),
    ("hierarchical_memory_limit", 16),
    ("hierarchical_memsw_limit", 17),
    ("total_cache", 18),
    ("total_rss", 19),
    ("total_rss_huge", 20),
    ("total_mapped_file", 21),
    ("total_dirty", 22),
    ("total_writeback", 23),
    ("total_pgpgin", 24),
    ("total_pgpgout", 25),
    ("total_pgfault", 26),
    ("total_pgmajfault", 27),
    ("total_inactive_anon", 28),
    ("total_active_anon", 29),
    ("total_inactive_file", 30),
    ("total_active_file", 31),
    ("total_unevictable", 32),
];
/// By `oom_kill` CRI tells a container that ran out of memory from one that was killed.
const OOM_CONTROL: Names = &[("oom_kill_disable", 1), ("under_oom", 2), ("oom_kill", 3)];
const MEMORY_KINDS: [(&str, u64); 4] =
    [("memory", 33), ("memory.memsw", 34), ("memory.kmem", 35), ("memory.kmem.tcp", 36)];
const DISK_STATISTICS: [(&str, u64); 7] = [
    ("io_service_bytes", 1),
    ("io_queued", 3),
    ("io_service_time", 4),
    ("io_wait_time", 5),
    ("io_merged", 6),
    ("time", 7),
    ("sectors", 8),
];

/// `None` if nothing can be read: the process has no cgroup of its own, or it has been removed.
pub(super) fn metrics(
    group: impl Fn(&str) -> Option<Files>,
    page_sizes: &[String],
    partitions: &Path,
) -> Option<Message> {
    let pids = group("pids").and_then(pids);
    let cpu = group("cpuacct").and_then(|accounting| cpu(accounting, group("cpu")));
    let mut files = group("memory");
    let memory = files.as_mut().and_then(memory);
    if pids.is_none() && cpu.is_none() && memory.is_none() {
        return None;
    }
    let mut metrics = Message::default();
    if let Some(mut files) = group("hugetlb") {
        for size in page_sizes {
            metrics.message(1, hugetlb(&mut files, size));
        }
    }
    metrics.message(2, pids);
    metrics.message(3, cpu);
    metrics.message(4, memory);
    metrics.message(5, group("blkio").and_then(|files| blkio(files, partitions)));
    metrics.message(6, group("rdma").and_then(|mut files| files.rdma()));
    let kills = files.and_then(|mut files| files.values("memory.oom_control", OOM_CONTROL));
    metrics.message(9, kills.map(|kills| Message::of(&kills)));
    Some(metrics)
}

fn pids(mut files: Files) -> Option<Message> {
    let current = files.number("pids.current")?;
    // Without a limit 0, as containerd's own reader has it for this version.
    let limit = files.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or_default();
    Some(Message::of(&[0, current, limit]))
}

/// Clients look into both parts without asking whether they are there (dockerd would end), so both are.
fn cpu(accounting: Files, bandwidth: Option<Files>) -> Option<Message> {
    let throttling = bandwidth.and_then(|mut files| files.values("cpu.stat", BANDWIDTH)).unwrap_or(NONE);
    let mut cpu = Message::default();
    cpu.message(1, Some(usage(accounting)?));
    cpu.message(2, Some(Message::of(&throttling)));
    Some(cpu)
}

fn usage(mut files: Files) -> Option<Message> {
    let total = files.number("cpuacct.usage")?;
    let modes = files.values("cpuacct.stat", PROCESSOR).unwrap_or(NONE);
    let mut usage = Message::of(&modes.map(|ticks| ticks.saturating_mul(NANOSECONDS_PER_TICK)));
    usage.number(1, total);
    let per_cpu = files.text("cpuacct.usage_percpu").unwrap_or_default();
    usage.numbers(4, per_cpu.split_ascii_whitespace().filter_map(number));
    Some(usage)
}

fn memory(files: &mut Files) -> Option<Message> {
    let kinds = MEMORY_KINDS.map(|(kind, field)| (field, memory_entry(files, kind)));
    kinds[0].1.as_ref()?;
    let mut memory = Message::of(&files.values("memory.stat", MEMORY).unwrap_or(NONE));
    for (field, entry) in kinds {
        memory.message(field, entry);
    }
    Some(memory)
}

fn memory_entry(files: &mut Files, kind: &str) -> Option<Message> {
    let mut number = |what: &str| files.number(&format!("{kind}.{what}"));
    let usage = number("usage_in_bytes")?;
    let [limit, max, failures] =
        ["limit_in_bytes", "max_usage_in_bytes", "failcnt"].map(|what| number(what).unwrap_or_default());
    Some(Message::of(&[0, limit, usage, max, failures]))
}

/// What names a disk by its numbers.
type NameOf<'a> = &'a dyn Fn(u64, u64) -> String;

/// The disks' scheduler keeps the full set (CFQ until Linux 5.0; BFQ a part of it); where it keeps none, there
/// is what passed the throttle.
fn blkio(mut files: Files, partitions: &Path) -> Option<Message> {
    let partitions = LazyCell::new(|| files::kernel_text(partitions).unwrap_or_default());
    let name_of = |major, minor| disk_name(&partitions, major, minor);
    scheduled(&mut files, "blkio", &name_of)
        .or_else(|| scheduled(&mut files, "blkio.bfq", &name_of))
        .or_else(|| throttled(&mut files, &name_of))
}

/// `None` if this scheduler served no disk.
fn scheduled(files: &mut Files, scheduler: &str, name_of: NameOf<'_>) -> Option<Message> {
    let mut stat = Message::default();
    let mut list =
        |what: &str, field| disks(files, &format!("{scheduler}.{what}_recursive"), name_of, field, &mut stat);
    list("io_serviced", 2).filter(|count| *count > 0)?;
    for (what, field) in DISK_STATISTICS {
        list(what, field);
    }
    Some(stat)
}

fn throttled(files: &mut Files, name_of: NameOf<'_>) -> Option<Message> {
    let mut stat = Message::default();
    // Older kernels have only the counts without the cgroups below.
    let mut list = |file: &str, field| {
        let recursive = disks(files, &format!("{file}_recursive"), name_of, field, &mut stat);
        recursive.or_else(|| disks(files, file, name_of, field, &mut stat))
    };
    list("blkio.throttle.io_serviced", 2)?;
    list("blkio.throttle.io_service_bytes", 1);
    Some(stat)
}

/// Adds a file's entries to a field, and returns how many they are.
fn disks(files: &mut Files, file: &str, name_of: NameOf<'_>, field: u64, to: &mut Message) -> Option<usize> {
    let text = files.text(file)?;
    let entries = text.lines().filter_map(|line| disk(line, name_of));
    Some(entries.map(|entry| to.message(field, Some(entry))).count())
}

/// `8:0 Read 4096`, or without an operation where there is but one. The sum over all disks is left out.
fn disk(line: &str, name_of: NameOf<'_>) -> Option<Message> {
    let (numbers, rest) = line.split_once(' ')?;
    let (major, minor) = device(numbers)?;
    let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
    let mut entry = Message::of(&[0, 0, 0, major, minor, number(value)?]);
    entry.bytes(1, op.as_bytes());
    entry.bytes(2, name_of(major, minor).as_bytes());
    Some(entry)
}

/// A disk's path, by `/proc/partitions`: lines of two numbers, a size and a name. Empty if it is not there.
fn disk_name(partitions: &str, major: u64, minor: u64) -> String {
    let name = partitions.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let found = number(words.next()?)? == major && number(words.next()?)? == minor;
        if found { words.nth(1) } else { None }
    });
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn hugetlb(files: &mut Files, size: &str) -> Option<Message> {
    let mut number = |what: &str| files.number(&format!("hugetlb.{size}.{what}"));
    let usage = number("usage_in_bytes")?;
    let [max, failures] = ["max_usage_in_bytes", "failcnt"].map(|what| number(what).unwrap_or_default());
    let mut stat = Message::of(&[0, usage, max, failures]);
    stat.bytes(4, size.as_bytes());
    Some(stat)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups::metrics::{
        BlkIOEntry, BlkIOStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
        PidsStat, RdmaEntry, Throttle,
    };
    use protobuf::{Message as _, MessageField};

    use super::super::tests::Tree;
    use super::*;

    const MEMORY_STAT: &str = "cache 1\nrss 2\nrss_huge 3\nshmem 900\nmapped_file 4\ndirty 5\nwriteback 6\n\
        workingset_refault_anon 901\npgpgin 7\npgpgout 8\npgfault 9\npgmajfault 10\ninactive_anon 11\n\
        active_anon 12\ninactive_file 13\nactive_file 14\nunevictable 15\nhierarchical_memory_limit 16\n\
        hierarchical_memsw_limit 9223372036854771712\ntotal_cache 18\ntotal_rss 19\ntotal_rss_huge 20\n\
        total_shmem 902\ntotal_mapped_file 21\ntotal_dirty 22\ntotal_writeback 23\ntotal_pgpgin 24\n\
        total_pgpgout 25\ntotal_pgfault 26\ntotal_pgmajfault 27\ntotal_inactive_anon 28\ntotal_active_anon 29\n\
        total_inactive_file 30\ntotal_active_file 31\ntotal_unevictable 32\n";

    /// Each controller's cgroup is a directory of its name.
    fn read(tree: &Tree) -> Option<Metrics> {
        let group = |controller: &str| Files::open(&tree.root().join(controller));
        let message = metrics(group, &["2MB".to_owned(), "1GB".to_owned()], &tree.root().join("partitions"))?;
        Some(Metrics::parse_from_bytes(&message.into_bytes()).unwrap())
    }

    fn disk(device: &str, (major, minor): (u64, u64), op: &str, value: u64) -> BlkIOEntry {
        let (device, op) = (device.to_owned(), op.to_owned());
        BlkIOEntry { op, device, major, minor, value, ..BlkIOEntry::default() }
    }

    #[test]
    fn processor_time_is_told_per_mode_and_processor_with_throttling() {
        let tree = Tree::new(&[
            ("cpuacct/cpuacct.usage", "1234567890\n"),
            ("cpuacct/cpuacct.stat", "user 70\nsystem 53\n"),
            ("cpuacct/cpuacct.usage_percpu", "1000000000 234567890 \n"),
            (
                "cpu/cpu.stat",
                "nr_periods 4\nnr_throttled 5\nthrottled_time 6\nnr_bursts 900\nburst_time 901\n",
            ),
        ]);
        let usage = CPUUsage {
            total: 1_234_567_890,
            kernel: 530_000_000,
            user: 700_000_000,
            per_cpu: vec![1_000_000_000, 234_567_890],
            ..CPUUsage::default()
        };
        let throttling =
            Throttle { periods: 4, throttled_periods: 5, throttled_time: 6, ..Throttle::default() };
        let cpu = read(&tree).unwrap().cpu;
        assert_eq!(cpu.usage, MessageField::some(usage));
        assert_eq!(cpu.throttling, MessageField::some(throttling));
    }

    #[test]
    fn throttling_is_there_for_clients_even_where_the_kernel_has_none() {
        let metrics = read(&Tree::new(&[("cpuacct/cpuacct.usage", "1\n")])).unwrap();
        assert_eq!(metrics.cpu.throttling, MessageField::some(Throttle::default()));
    }

    #[test]
    fn memory_statistics_are_read_whole() {
        let tree =
            Tree::new(&[("memory/memory.stat", MEMORY_STAT), ("memory/memory.usage_in_bytes", "33\n")]);
        let expected = MemoryStat {
            cache: 1,
            rss: 2,
            rss_huge: 3,
            mapped_file: 4,
            dirty: 5,
            writeback: 6,
            pg_pg_in: 7,
            pg_pg_out: 8,
            pg_fault: 9,
            pg_maj_fault: 10,
            inactive_anon: 11,
            active_anon: 12,
            inactive_file: 13,
            active_file: 14,
            unevictable: 15,
            hierarchical_memory_limit: 16,
            hierarchical_swap_limit: 9_223_372_036_854_771_712,
            total_cache: 18,
            total_rss: 19,
            total_rss_huge: 20,
            total_mapped_file: 21,
            total_dirty: 22,
            total_writeback: 23,
            total_pg_pg_in: 24,
            total_pg_pg_out: 25,
            total_pg_fault: 26,
            total_pg_maj_fault: 27,
            total_inactive_anon: 28,
            total_active_anon: 29,
            total_inactive_file: 30,
            total_active_file: 31,
            total_unevictable: 32,
            usage: MessageField::some(MemoryEntry { usage: 33, ..MemoryEntry::default() }),
            ..MemoryStat::default()
        };
        assert_eq!(read(&tree).unwrap().memory, MessageField::some(expected));
    }

    #[test]
    fn memory_swap_and_kernel_memory_have_usage_limit_peak_and_failures() {
        let kinds = ["memory", "memory.memsw", "memory.kmem", "memory.kmem.tcp"];
        let whats = ["limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt"];
        let names = kinds.iter().flat_map(|kind| whats.map(|what| format!("memory/{kind}.{what}")));
        let files: Vec<_> = names.zip(1..).map(|(name, n)| (name, format!("{n}\n"))).collect();
        let mut files: Vec<_> =
            files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        files.push(("memory/memory.oom_control", "oom_kill_disable 1\nunder_oom 2\noom_kill 3\n"));
        let metrics = read(&Tree::new(&files)).unwrap();
        let entry = |limit, usage, max, failcnt| {
            MessageField::some(MemoryEntry { limit, usage, max, failcnt, ..MemoryEntry::default() })
        };
        assert_eq!(metrics.memory.usage, entry(1, 2, 3, 4));
        assert_eq!(metrics.memory.swap, entry(5, 6, 7, 8));
        assert_eq!(metrics.memory.kernel, entry(9, 10, 11, 12));
        assert_eq!(metrics.memory.kernel_tcp, entry(13, 14, 15, 16));
        let expected = MemoryOomControl {
            oom_kill_disable: 1,
            under_oom: 2,
            oom_kill: 3,
            ..MemoryOomControl::default()
        };
        assert_eq!(metrics.memory_oom_control, MessageField::some(expected));
    }

    #[test]
    fn a_scheduler_that_keeps_statistics_is_asked_for_all_of_them() {
        let names = ["io_service_bytes", "io_serviced", "io_queued", "io_service_time", "io_wait_time"];
        let names = names.into_iter().chain(["io_merged", "time", "sectors"]);
        let files: Vec<_> = names
            .zip(1..)
            .map(|(name, n)| (format!("blkio/blkio.{name}_recursive"), format!("8:0 Read {n}\nTotal {n}\n")))
            .collect();
        let mut files: Vec<_> =
            files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        files.extend([("pids/pids.current", "1"), ("blkio/blkio.time_recursive", "8:0 7\n")]);
        files.push(("blkio/blkio.throttle.io_serviced", "8:0 Read 900\n"));
        let entry = |op, value| vec![disk("", (8, 0), op, value)];
        let expected = BlkIOStat {
            io_service_bytes_recursive: entry("Read", 1),
            io_serviced_recursive: entry("Read", 2),
            io_queued_recursive: entry("Read", 3),
            io_service_time_recursive: entry("Read", 4),
            io_wait_time_recursive: entry("Read", 5),
            io_merged_recursive: entry("Read", 6),
            io_time_recursive: entry("", 7),
            sectors_recursive: entry("Read", 8),
            ..BlkIOStat::default()
        };
        assert_eq!(read(&Tree::new(&files)).unwrap().blkio, MessageField::some(expected));
    }

    #[test]
    fn what_passed_the_throttle_stands_in_for_an_idle_scheduler() {
        let metrics = read(&Tree::new(&[
            ("pids/pids.current", "1"),
            (
                "partitions",
                "major minor  #blocks  name\n\n   8        0  10485760 sda\n 254       16   1 vdb\n",
            ),
            ("blkio/blkio.bfq.io_serviced_recursive", "Total 0\n"),
            ("blkio/blkio.throttle.io_serviced", "8:0 Read 900\n"),
            ("blkio/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Total 1\nTotal 1\n"),
            ("blkio/blkio.throttle.io_service_bytes", "254:16 Write 4096\n9:9 Sync 512\nTotal 4608\n"),
        ]))
        .unwrap();
        let serviced = [disk("/dev/sda", (8, 0), "Read", 1), disk("/dev/sda", (8, 0), "Total", 1)];
        assert_eq!(metrics.blkio.io_serviced_recursive, serviced);
        let bytes = [disk("/dev/vdb", (254, 16), "Write", 4096), disk("", (9, 9), "Sync", 512)];
        assert_eq!(metrics.blkio.io_service_bytes_recursive, bytes);
    }

    #[test]
    fn processes_huge_pages_and_rdma_devices_are_read() {
        let metrics = read(&Tree::new(&[
            ("pids/pids.current", "3\n"),
            ("pids/pids.max", "max\n"),
            ("hugetlb/hugetlb.1GB.usage_in_bytes", "1\n"),
            ("hugetlb/hugetlb.1GB.max_usage_in_bytes", "2\n"),
            ("hugetlb/hugetlb.1GB.failcnt", "3\n"),
            ("rdma/rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
            ("rdma/rdma.max", "mlx4_0 hca_handle=max hca_object=5000\n"),
        ]))
        .unwrap();
        let expected = PidsStat { current: 3, limit: 0, ..PidsStat::default() };
        assert_eq!(metrics.pids, MessageField::some(expected));
        let expected = HugetlbStat {
            usage: 1,
            max: 2,
            failcnt: 3,
            pagesize: "1GB".to_owned(),
            ..HugetlbStat::default()
        };
        assert_eq!(metrics.hugetlb, [expected]);
        let entry = |hca_handles, hca_objects| RdmaEntry {
            device: "mlx4_0".to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        };
        assert_eq!(metrics.rdma.current, [entry(2, 2000)]);
        assert_eq!(metrics.rdma.limit, [entry(u32::MAX, 5000)]);
    }

    #[test]
    fn the_part_of_a_missing_controller_is_unset() {
        let expected = PidsStat { current: 1, limit: 9, ..PidsStat::default() };
        let expected = Metrics { pids: MessageField::some(expected), ..Metrics::default() };
        let files = [("pids/pids.current", "1\n"), ("pids/pids.max", "9\n"), ("memory/cgroup.procs", "")];
        assert_eq!(read(&Tree::new(&files)), Some(expected));
    }

    #[test]
    fn a_removed_cgroup_has_no_metrics() {
        assert_eq!(read(&Tree::new(&[("blkio/blkio.throttle.io_serviced", "Total 0\n")])), None);
    }
}
