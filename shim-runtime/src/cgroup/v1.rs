//! The metrics of a process whose host gives each controller a hierarchy of its own.
//! A controller that is not mounted, or in which the process has no cgroup of its own, is left out.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::MessageField;

use super::{Files, device, number};

/// The length of the ticks in `cpuacct.stat`: programs are told of 100 a second on every machine we run on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// `None` if nothing can be read: the process has no cgroup of its own, or it has been removed.
pub(super) fn metrics(
    group: impl Fn(&str) -> Option<Files>,
    page_sizes: &[String],
    partitions: &Path,
) -> Option<Metrics> {
    let mut metrics = Metrics {
        pids: group("pids").and_then(pids).into(),
        cpu: group("cpuacct").and_then(|accounting| cpu(accounting, group("cpu"))).into(),
        ..Metrics::default()
    };
    if let Some(mut files) = group("memory") {
        metrics.memory = memory(&mut files).into();
        metrics.memory_oom_control = oom_control(&mut files).into();
    }
    if metrics.cpu.is_none() && metrics.memory.is_none() && metrics.pids.is_none() {
        return None;
    }
    metrics.blkio = group("blkio").and_then(|files| blkio(files, partitions)).into();
    metrics.rdma = group("rdma").and_then(rdma).into();
    if let Some(mut files) = group("hugetlb") {
        metrics.hugetlb = page_sizes.iter().filter_map(|size| hugetlb(&mut files, size)).collect();
    }
    Some(metrics)
}

fn pids(mut files: Files) -> Option<PidsStat> {
    let current = files.number("pids.current")?;
    // Without a limit 0, as containerd's own reader has it for this version.
    let limit = files.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or_default();
    Some(PidsStat { current, limit, ..PidsStat::default() })
}

/// Clients look into both parts without asking whether they are there (dockerd would end), so both are.
fn cpu(accounting: Files, bandwidth: Option<Files>) -> Option<CPUStat> {
    let throttling = bandwidth.and_then(throttling).unwrap_or_default();
    Some(CPUStat {
        usage: MessageField::some(usage(accounting)?),
        throttling: MessageField::some(throttling),
        ..CPUStat::default()
    })
}

fn usage(mut files: Files) -> Option<CPUUsage> {
    let mut usage = CPUUsage { total: files.number("cpuacct.usage")?, ..CPUUsage::default() };
    for (key, ticks) in files.pairs("cpuacct.stat").into_iter().flatten() {
        match key {
            "user" => usage.user = ticks.saturating_mul(NANOSECONDS_PER_TICK),
            "system" => usage.kernel = ticks.saturating_mul(NANOSECONDS_PER_TICK),
            _ => {}
        }
    }
    let per_cpu = files.text("cpuacct.usage_percpu").unwrap_or_default();
    usage.per_cpu = per_cpu.split_ascii_whitespace().filter_map(number).collect();
    Some(usage)
}

fn throttling(mut files: Files) -> Option<Throttle> {
    let mut throttle = Throttle::default();
    for (key, value) in files.pairs("cpu.stat")? {
        match key {
            "nr_periods" => throttle.periods = value,
            "nr_throttled" => throttle.throttled_periods = value,
            "throttled_time" => throttle.throttled_time = value,
            _ => {}
        }
    }
    Some(throttle)
}

fn memory(files: &mut Files) -> Option<MemoryStat> {
    let mut memory = MemoryStat {
        usage: MessageField::some(memory_entry(files, "memory")?),
        swap: memory_entry(files, "memory.memsw").into(),
        kernel: memory_entry(files, "memory.kmem").into(),
        kernel_tcp: memory_entry(files, "memory.kmem.tcp").into(),
        ..MemoryStat::default()
    };
    memory_stat(files, &mut memory);
    Some(memory)
}

fn memory_entry(files: &mut Files, kind: &str) -> Option<MemoryEntry> {
    let mut number = |what: &str| files.number(&format!("{kind}.{what}"));
    Some(MemoryEntry {
        usage: number("usage_in_bytes")?,
        limit: number("limit_in_bytes").unwrap_or_default(),
        max: number("max_usage_in_bytes").unwrap_or_default(),
        failcnt: number("failcnt").unwrap_or_default(),
        ..MemoryEntry::default()
    })
}

fn memory_stat(files: &mut Files, memory: &mut MemoryStat) {
    for (key, value) in files.pairs("memory.stat").into_iter().flatten() {
        match key {
            "cache" => memory.cache = value,
            "rss" => memory.rss = value,
            "rss_huge" => memory.rss_huge = value,
            "mapped_file" => memory.mapped_file = value,
            "dirty" => memory.dirty = value,
            "writeback" => memory.writeback = value,
            "pgpgin" => memory.pg_pg_in = value,
            "pgpgout" => memory.pg_pg_out = value,
            "pgfault" => memory.pg_fault = value,
            "pgmajfault" => memory.pg_maj_fault = value,
            "inactive_anon" => memory.inactive_anon = value,
            "active_anon" => memory.active_anon = value,
            "inactive_file" => memory.inactive_file = value,
            "active_file" => memory.active_file = value,
            "unevictable" => memory.unevictable = value,
            "hierarchical_memory_limit" => memory.hierarchical_memory_limit = value,
            "hierarchical_memsw_limit" => memory.hierarchical_swap_limit = value,
            "total_cache" => memory.total_cache = value,
            "total_rss" => memory.total_rss = value,
            "total_rss_huge" => memory.total_rss_huge = value,
            "total_mapped_file" => memory.total_mapped_file = value,
            "total_dirty" => memory.total_dirty = value,
            "total_writeback" => memory.total_writeback = value,
            "total_pgpgin" => memory.total_pg_pg_in = value,
            "total_pgpgout" => memory.total_pg_pg_out = value,
            "total_pgfault" => memory.total_pg_fault = value,
            "total_pgmajfault" => memory.total_pg_maj_fault = value,
            "total_inactive_anon" => memory.total_inactive_anon = value,
            "total_active_anon" => memory.total_active_anon = value,
            "total_inactive_file" => memory.total_inactive_file = value,
            "total_active_file" => memory.total_active_file = value,
            "total_unevictable" => memory.total_unevictable = value,
            _ => {}
        }
    }
}

/// By `oom_kill` CRI tells a container that ran out of memory from one that was killed.
fn oom_control(files: &mut Files) -> Option<MemoryOomControl> {
    let mut control = MemoryOomControl::default();
    for (key, value) in files.pairs("memory.oom_control")? {
        match key {
            "oom_kill_disable" => control.oom_kill_disable = value,
            "under_oom" => control.under_oom = value,
            "oom_kill" => control.oom_kill = value,
            _ => {}
        }
    }
    Some(control)
}

/// The disks' scheduler keeps the full set (CFQ until Linux 5.0; BFQ a part of it); where it keeps none, there
/// is what passed the throttle.
fn blkio(mut files: Files, partitions: &Path) -> Option<BlkIOStat> {
    let scheduled = scheduled(&mut files, "blkio").or_else(|| scheduled(&mut files, "blkio.bfq"));
    let mut stat = scheduled.or_else(|| throttled(&mut files))?;
    name_disks(&mut stat, partitions);
    Some(stat)
}

/// `None` if this scheduler served no disk.
fn scheduled(files: &mut Files, scheduler: &str) -> Option<BlkIOStat> {
    let mut list = |what: &str| disk_entries(files, &format!("{scheduler}.{what}_recursive"));
    let serviced = list("io_serviced").filter(|entries| !entries.is_empty())?;
    let mut list = |what| list(what).unwrap_or_default();
    Some(BlkIOStat {
        io_service_bytes_recursive: list("io_service_bytes"),
        io_serviced_recursive: serviced,
        io_queued_recursive: list("io_queued"),
        io_service_time_recursive: list("io_service_time"),
        io_wait_time_recursive: list("io_wait_time"),
        io_merged_recursive: list("io_merged"),
        io_time_recursive: list("time"),
        sectors_recursive: list("sectors"),
        ..BlkIOStat::default()
    })
}

fn throttled(files: &mut Files) -> Option<BlkIOStat> {
    // Older kernels have only the counts without the cgroups below.
    let mut list =
        |file: &str| disk_entries(files, &format!("{file}_recursive")).or_else(|| disk_entries(files, file));
    Some(BlkIOStat {
        io_serviced_recursive: list("blkio.throttle.io_serviced")?,
        io_service_bytes_recursive: list("blkio.throttle.io_service_bytes").unwrap_or_default(),
        ..BlkIOStat::default()
    })
}

fn disk_entries(files: &mut Files, file: &str) -> Option<Vec<BlkIOEntry>> {
    Some(files.text(file)?.lines().filter_map(disk_entry).collect())
}

/// `8:0 Read 4096`, or without an operation where there is but one. The sum over all disks is left out.
fn disk_entry(line: &str) -> Option<BlkIOEntry> {
    let (numbers, rest) = line.split_once(' ')?;
    let (major, minor) = device(numbers)?;
    let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
    let (op, value) = (op.to_owned(), value.parse().ok()?);
    Some(BlkIOEntry { op, major, minor, value, ..BlkIOEntry::default() })
}

fn name_disks(stat: &mut BlkIOStat, partitions: &Path) {
    let lists = [
        &mut stat.io_service_bytes_recursive,
        &mut stat.io_serviced_recursive,
        &mut stat.io_queued_recursive,
        &mut stat.io_service_time_recursive,
        &mut stat.io_wait_time_recursive,
        &mut stat.io_merged_recursive,
        &mut stat.io_time_recursive,
        &mut stat.sectors_recursive,
    ];
    let mut entries = lists.into_iter().flatten().peekable();
    if entries.peek().is_none() {
        return;
    }
    let partitions = std::fs::read_to_string(partitions).unwrap_or_default();
    entries.for_each(|entry| entry.device = disk_name(&partitions, entry.major, entry.minor));
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

fn rdma(mut files: Files) -> Option<RdmaStat> {
    let entry = |device, hca_handles, hca_objects| RdmaEntry {
        device,
        hca_handles,
        hca_objects,
        ..RdmaEntry::default()
    };
    let current = files.rdma("rdma.current", entry)?;
    let limit = files.rdma("rdma.max", entry).unwrap_or_default();
    Some(RdmaStat { current, limit, ..RdmaStat::default() })
}

fn hugetlb(files: &mut Files, size: &str) -> Option<HugetlbStat> {
    let mut number = |what: &str| files.number(&format!("hugetlb.{size}.{what}"));
    Some(HugetlbStat {
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes").unwrap_or_default(),
        failcnt: number("failcnt").unwrap_or_default(),
        pagesize: size.to_owned(),
        ..HugetlbStat::default()
    })
}

#[cfg(test)]
mod tests {
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
        metrics(group, &["2MB".to_owned(), "1GB".to_owned()], &tree.root().join("partitions"))
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
