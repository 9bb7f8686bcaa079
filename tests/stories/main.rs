//! Stories on real servers, one file each, told on every major version from 15 to 19, a few on 14. Each tells what a user does
//! and what must come of it; the kit they use lies in `tests/testkit`.

#[path = "000_the_kit.rs"]
mod story_000_the_kit;
#[path = "001_backup_under_load.rs"]
mod story_001_backup_under_load;
#[path = "002_primary_stopped.rs"]
mod story_002_primary_stopped;
#[path = "003_tablespaces.rs"]
mod story_003_tablespaces;
#[path = "004_linked_pg_wal.rs"]
mod story_004_linked_pg_wal;
#[path = "005_external_configuration.rs"]
mod story_005_external_configuration;
#[path = "006_many_small_tables.rs"]
mod story_006_many_small_tables;
#[path = "007_page_damage.rs"]
mod story_007_page_damage;
#[path = "008_through_s3.rs"]
mod story_008_through_s3;
#[path = "009_export_with_tar_alone.rs"]
mod story_009_export_with_tar_alone;
#[path = "010_kill_nine.rs"]
mod story_010_kill_nine;
#[path = "011_refusals.rs"]
mod story_011_refusals;
#[path = "012_interrupted_backup.rs"]
mod story_012_interrupted_backup;
#[path = "013_flipped_bits.rs"]
mod story_013_flipped_bits;
#[path = "014_two_at_once.rs"]
mod story_014_two_at_once;
#[path = "015_archive_fed_and_cascaded.rs"]
mod story_015_archive_fed_and_cascaded;
#[path = "016_idle_primary.rs"]
mod story_016_idle_primary;
#[path = "017_left_behind.rs"]
mod story_017_left_behind;
#[path = "018_disk_full.rs"]
mod story_018_disk_full;
#[path = "019_memory.rs"]
mod story_019_memory;
#[path = "020_without_checksums.rs"]
mod story_020_without_checksums;
#[path = "021_odd_places.rs"]
mod story_021_odd_places;
#[path = "022_from_the_primary.rs"]
mod story_022_from_the_primary;
#[path = "023_after_a_failover.rs"]
mod story_023_after_a_failover;
#[path = "024_lagging_standby.rs"]
mod story_024_lagging_standby;
#[path = "025_bad_line.rs"]
mod story_025_bad_line;
#[path = "026_as_root.rs"]
mod story_026_as_root;
#[path = "027_wal_with_a_backup.rs"]
mod story_027_wal_with_a_backup;
#[path = "028_wal_scan.rs"]
mod story_028_wal_scan;
#[path = "029_the_oracle.rs"]
mod story_029_the_oracle;
#[path = "030_push.rs"]
mod story_030_push;
#[path = "031_get.rs"]
mod story_031_get;
#[path = "032_receive.rs"]
mod story_032_receive;
#[path = "033_receive_faults.rs"]
mod story_033_receive_faults;
#[path = "034_targets.rs"]
mod story_034_targets;
#[path = "035_wal_list.rs"]
mod story_035_wal_list;
#[path = "036_three_timelines.rs"]
mod story_036_three_timelines;
#[path = "037_faulty_store.rs"]
mod story_037_faulty_store;
#[path = "038_kill_nine_wal.rs"]
mod story_038_kill_nine_wal;
#[path = "039_damage.rs"]
mod story_039_damage;
#[path = "040_what_must_not_be_lost.rs"]
mod story_040_what_must_not_be_lost;
#[path = "041_split_brain.rs"]
mod story_041_split_brain;
#[path = "042_pages_taken_apart.rs"]
mod story_042_pages_taken_apart;
#[path = "043_pages_of_every_kind.rs"]
mod story_043_pages_of_every_kind;
#[path = "044_what_the_catalogs_name.rs"]
mod story_044_what_the_catalogs_name;
#[path = "045_targets_against_postgres.rs"]
mod story_045_targets_against_postgres;
#[path = "046_databases_copied_during_a_backup.rs"]
mod story_046_databases_copied_during_a_backup;
#[path = "047_what_wal_asks_for.rs"]
mod story_047_what_wal_asks_for;
#[path = "048_files_that_replay_removes.rs"]
mod story_048_files_that_replay_removes;
