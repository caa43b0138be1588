-- One row a user: the activity as flags, three yes-or-no's (-124, not known, is a no), the logs of four numbers, the
-- encrypted categories of three to seven values as flags and those of two as they are. What is missing stays null.
select
    trim(user_id) as user_id,
    flatten([
        [
            (user_active_degree = name)::float
            for name in [
                'full_active', 'high_active', 'middle_active', 'low_active', 'single_low_active', '2_14_day_new',
                '30day_retention', 'day_new'
            ]
        ],
        [(is_lowactive_period = '1')::float, (is_live_streamer = '1')::float, (is_video_author = '1')::float],
        [
            ln(1 + greatest(try_cast(count as double), 0))::float
            for count in [follow_user_num, fans_user_num, friend_user_num, register_days]
        ],
        [(try_cast(onehot_feat1 as double) = code)::float for code in range(7)],
        [(try_cast(onehot_feat6 as double) = code)::float for code in range(3)],
        [(try_cast(onehot_feat9 as double) = code)::float for code in range(7)],
        [(try_cast(onehot_feat10 as double) = code)::float for code in range(5)],
        [(try_cast(onehot_feat11 as double) = code)::float for code in range(5)],
        [
            try_cast(flag as float)
            for flag in [
                onehot_feat0, onehot_feat12, onehot_feat13, onehot_feat14, onehot_feat15, onehot_feat16, onehot_feat17
            ]
        ]
    ]) as features,
    line,
    if(fault is null, null, raw) as raw,
    fault
from raw_rows
qualify fault is not null or row_number() over (partition by trim(user_id) order by line) = 1
