-- One consistent reading.
--
-- Returns  'ok', pushed, delayed, first due time or '', ready, ready bytes, since when the oldest counts
--          or '', in flight, batches, offered, next offer or '', done, dead, expired,
--          cancelled, purged, held bytes, and the values of two bookmarks or ''
-- O(log N), whatever the depth
local function card(key) return decimal(call('ZCARD', PREFIX .. key)) end
local function time(members) return members[1] and sub(members[1], 1, 16) or '' end

local directives = call('HMGET', PREFIX .. 'bookmarks', 'batchyard:paused', 'batchyard:flushed')

return answer({
  'ok', decimal(state.pushed), card('delayed'), time(call('ZRANGE', PREFIX .. 'due', 0, 0)),
  card('ready'), decimal(state.ready_bytes), oldest_ready() or '', card('flight'), card('offers'),
  decimal(call('ZLEXCOUNT', PREFIX .. 'offers', '-', '[' .. NOW .. 'g')),
  time(call('ZRANGE', PREFIX .. 'offers', '[' .. NOW .. 'g', '+', 'BYLEX', 'LIMIT', 0, 1)),
  decimal(state.done), card('dead'), decimal(state.expired), decimal(state.cancelled),
  decimal(state.purged), decimal(state.held_bytes), directives[1] or '', directives[2] or '',
})
