-- Relations of every kind that a cluster has, with pages as a busy server leaves them: rows updated in place and elsewhere,
-- pruned, dead and not yet removed, nulls, columns added later, posting lists and trees, long values.
set client_min_messages = warning;
set timezone = 'UTC';

create sequence numbers;

create table things (
    id int,
    words text,
    amount numeric(12, 2),
    price float8,
    at timestamptz,
    flag bool,
    small smallint,
    big bigint,
    token uuid,
    document jsonb,
    many int[],
    place point,
    during int4range,
    taken interval
) with (fillfactor = 80, autovacuum_enabled = off);

create function word(n int) returns text language sql immutable as
    $$ select (array['harbour', 'leeward', 'anchor', 'sail', 'tide', 'windward', 'mast', 'keel'])[1 + abs(hashint4(n)) % 8] $$;

insert into things
select n,
    word(n) || ' ' || word(n * 31) || case when n % 5 = 0 then repeat(' ' || word(n * 7), n % 40) else '' end,
    case when n % 3 > 0 then (hashint4(n) % 100000) / 100.0 end,
    case n when 17 then 'NaN' when 18 then '-0' when 19 then 'infinity' else (abs(hashint4(n + 5)) % 100000) / 100.0 end,
    '2024-02-29 12:00+00'::timestamptz + n * interval '61.03 seconds',
    case when n % 7 > 0 then n % 2 = 0 end,
    n % 100,
    n::bigint << (n % 50),
    md5(n::text)::uuid,
    jsonb_build_object('word', word(n), 'n', n),
    array[1, n % 10, n],
    point(n % 60, abs(hashint4(n)) % 60),
    int4range(n, n + n % 30),
    n * interval '1 minute'
from generate_series(1, 4000) as n;

alter table things add primary key (id);
create index things_flag on things (flag, small);
create index things_words on things (words);
create index things_at on things (at);
create index things_scattered on things (hashint4(id));
create index things_many on things using gin (many);
create index things_document on things using gin (document jsonb_path_ops);
create index things_place on things using gist (place);
create index things_during on things using gist (during);
create index things_quad on things using spgist (place);
create index things_radix on things using spgist (words);
create index things_hash on things using hash (id);
create index things_brin on things using brin (at) with (pages_per_range = 4);

create table long_values (id int primary key, plain text, packed text) with (autovacuum_enabled = off);
alter table long_values alter plain set storage external;
insert into long_values
select n,
    (select string_agg(word(n * 1000 + m), ' ') from generate_series(1, 900) as m),
    repeat((select string_agg(word(n * 500 + m), ' ') from generate_series(1, 300) as m), 8)
from generate_series(1, 20) as n;

create table readings (at timestamptz, sensor int, value float8, quality smallint) with (autovacuum_enabled = off);
insert into readings
select '2024-02-29 12:00+00'::timestamptz + n * interval '10 seconds', n % 9,
    case when n % 20 > 0 then round((20 + 5 * sin(n / 50.0))::numeric, 2)::float8 end, 1
from generate_series(1, 2000) as n;

-- The first columns of old rows only.
alter table things add column later text;

update things set price = price + 1 where id % 7 = 0;
delete from things where id % 11 = 0;
vacuum things;
update things set words = words || '!', later = 'later' where id % 13 = 0;
begin;
update things set amount = amount + 1 where id % 17 = 0;
rollback;
-- Pruned when read, and not yet removed from indexes.
delete from things where id % 19 = 0;
select count(later) from things \g /dev/null
select nextval('numbers') from generate_series(1, 100) \g /dev/null
vacuum long_values;
