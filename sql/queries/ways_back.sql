-- From each kind of number in the report to the rows behind it: the query that lists them, with the arguments of one such
-- number of these results. Kinds that these results have no number of are left out.
with main_metrics as (
    select *, row_number() over (order by metric_order, setting, value desc, agent) as place
    from agent_scores
),
value_of as (
    select concat('agent=', agent) as agent, concat('leg=', leg) as leg, concat('setting=', setting) as setting,
        concat('metric=', metric) as metric, against, place
    from main_metrics
),
periods as (  -- of data_report by their first day; as data_rows takes them: a year, a month or a day
    select if(bool_and(ends_with(bucket, '-01-01')), 4, if(bool_and(ends_with(bucket, '-01')), 7, 10)) as length
    from data_report
    where ends_with(section, '_by_period')
),
ways as (
    select 1 as place, 'leaderboard' as part, 'a value' as number, 'rows_behind' as query,
        (select [agent, leg, setting, metric] from value_of order by place limit 1) as arguments
    union all
    select 2, 'leaderboard', 'a difference to the reference', 'difference_rows', (
        select [agent, concat('against=', against), leg, setting, metric]
        from value_of where against is not null and agent <> concat('agent=', against) order by place limit 1
    )
    union all
    select 3, 'leaderboard', 'where the data, the code and the settings of a value come from', 'lineage',
        (select [agent, leg, setting, metric] from value_of order by place limit 1)
    union all
    select 4, 'legs', 'how far two legs agree', 'agreement_rows', (
        select [concat('first_leg=', first_leg), concat('first_setting=', first_setting),
            concat('second_leg=', second_leg), concat('second_setting=', second_setting)]
        from agreement where tau is not null
        order by first_leg, first_setting, second_leg, second_setting limit 1
    )
    union all
    select 5, 'said', 'a comparison', 'difference_rows', (
        select [concat('agent=', agent), concat('against=', against), concat('leg=', leg),
            concat('setting=', setting), concat('metric=', metric)]
        from comparisons order by family desc, agent, against, setting limit 1
    )
    union all
    select 6, 'said', 'what a decoder reaches', 'rows_behind', (
        select [concat('agent=', decoder), 'leg=decoding', concat('setting=', setting), 'metric=return']
        from decoded order by setting, decoder limit 1
    )
    union all
    select 7, 'values', 'an episode''s return, or a session''s metric', 'rows_behind',
        (select [agent, leg, setting, metric] from value_of where leg <> 'leg=ope' order by place limit 1)
    union all
    select 8, 'values', 'how many sessions can be judged', 'scored_rows',
        (select [concat('mode=', mode)] from rerank order by mode limit 1)
    union all
    select 9, 'goals', 'what a goal reaches', 'rows_behind', (
        select [concat('agent=', agent, ' (', goal, ')'), 'leg=goals', concat('setting=', setting), 'metric=clicks']
        from goal_sweep order by setting, agent, goal limit 1
    )
    union all
    select 10, 'ope', 'an estimate of pages', 'rows_behind', (
        select [concat('agent=', agent), 'leg=ope', concat('setting=page/', estimator), 'metric=value']
        from page_scores order by agent, estimator limit 1
    )
    union all
    select 11, 'ope', 'any estimate, its weights and overlap: the slots behind it', 'ope_rows',
        (select [concat('agent=', agent)] from ope_pages order by agent limit 1)
    union all
    select 12, 'ope', 'the estimates once more, from those slots', 'ope_recomputed',
        (select []::varchar[] from ope_pages limit 1)
    union all
    select 13, 'ope', 'a point of the reliability plot', 'calibration_rows',
        (select [concat('bin=', bin)] from ope_calibration order by bin limit 1)
    union all
    select 14, 'ope', 'a claim about an estimator', 'ope_proof_rows',
        (select [concat('claim=', claim), concat('estimator=', estimator)] from ope_proof_logs order by claim, estimator limit 1)
    union all
    select 15, 'ope', 'the claims once more, from those logs', 'ope_proof_recomputed',
        (select []::varchar[] from ope_proof_logs limit 1)
    union all
    select 16, 'simulators', 'a criterion of the gate', 'gate_rows',
        (select [concat('simulator=', simulator), concat('head=', head)] from simulator_answers order by simulator, head limit 1)
    union all
    select 17, 'simulators', 'the gate once more, from those rows: predictions', 'gate_recomputed',
        (select []::varchar[] from simulator_answers limit 1)
    union all
    select 18, 'simulators', 'the gate once more, from those rows: sessions', 'gate_twins_recomputed',
        (select []::varchar[] from simulator_twins limit 1)
    union all
    select 19, 'simulators', 'a mean over roll-outs', 'rows_behind', (
        select [concat('agent=', agent), 'leg=rollout', concat('setting=', setting), 'metric=depth']
        from rollout order by setting, agent limit 1
    )
    union all
    select 20, 'simulators', 'the share of the catalogue that is shown', 'coverage_rows',
        (select [concat('agent=', agent), concat('setting=', setting)] from coverage order by setting, agent limit 1)
    union all
    select 21, 'training', 'a point of a validation curve', 'validation_rows', (
        select [concat('agent=', agent), 'trial=', concat('step=', step)]
        from validation_scores where trial is null order by agent, step limit 1
    )
    union all
    select 22, 'training', 'the best validation of a trial', 'validation_rows', (
        select [concat('agent=', agent), concat('trial=', regexp_extract(metric, '^trial (.*): ', 1)),
            concat('step=', step)]
        from training_log where metric like 'trial %: best_validation' order by agent, metric limit 1
    )
    union all
    select 23, 'training', 'a point of a loss: as the training wrote it', 'training_rows',
        (select [concat('agent=', agent)] from training_log order by agent limit 1)
    union all
    select 24, 'slices', 'a slice', 'slice_rows', (
        select [concat('agent=', agent), concat('mode=', mode), concat('dimension=', dimension), concat('slice=', slice)]
        from slice_scores order by dimension_order, slice_order, mode desc, agent limit 1
    )
    union all
    select 25, 'data', 'a count of a period (of the log, with period=)', 'data_rows', (
        select [concat('subject=', replace(section, '_by_period', '')), concat('name=', name),
            concat('period=', left(bucket, length))]
        from data_report, periods where ends_with(section, '_by_period') order by place limit 1
    )
    union all
    select 26, 'data', 'a spread, a popularity, a share of cold users or items', 'length_rows', (
        select [concat('measure=', name)] from data_report where section = 'spread' order by place limit 1
    )
    union all
    select 27, 'data', 'what became of the raw rows', 'ingest_rows', (select []::varchar[] from ingest_counts limit 1)
    union all
    select 28, 'data', 'refused rows of a reason', 'reject_rows',
        (select [concat('reason=', bucket)] from data_report where section = 'rejects' order by place limit 1)
    union all
    select 29, 'data', 'the sessions of a split', 'split_rows',
        (select [concat('split=', split)] from splits order by start_ts limit 1)
    union all
    select 30, 'data', 'all of these once more, from those rows', 'data_recomputed',
        (select []::varchar[] from data_report limit 1)
)
select part, number, query, arguments
from ways
where arguments is not null
order by place
