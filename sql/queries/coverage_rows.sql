-- The items behind a share of the catalogue that an agent shows in one world: a row a seed and item that its roll-outs
-- showed. For example agent=goalrec_off setting=judge/feedback/natural
select coverage.setting, coverage.agent, coverage.seed, shown.item, items.item_id, items.title, coverage.items_known
from coverage
cross join unnest(coverage.items) as shown (item)
left join items on items.item = shown.item
where coverage.agent = $agent and coverage.setting = $setting
order by coverage.seed, shown.item
