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
    let limit = files.number("pids.max").unwrap_or_default();
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
